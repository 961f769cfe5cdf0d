"""The command `l1`: train on a text, talk to what was trained, and keep a workspace of the course."""

import os
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from l1_ref.checkpoint import read_checkpoint_state
from l1_ref.config import L1Config, require_whole
from l1_ref.course import commands
from l1_ref.data import DATA_DIR
from l1_ref.loss import perplexity
from l1_ref.runs import SPEC_FILE, RunSpec, continue_text, rebuild_data, train_run
from l1_ref.signals import handling
from l1_ref.training import TrainingConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="L1: build GPT from an empty cell. Train the reference on a text of yours, and talk to it.",
)
for _command in commands.COMMANDS:
    app.command()(_command)
out = commands.out


@app.command()
def train(
    files: Annotated[list[str] | None, typer.Argument(help="UTF-8 texts; none means the course's own tales.")] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run. Default: runs/<name of the text>.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, small, base, large or gpt2. Default: tiny.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the model: --set n_layers=4 n_heads=4.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="chars, bpe:N, gpt2 or tales. Default: chars.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences in a step.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Batches whose gradients one step adds up.")] = None,
    lr_peak: Annotated[float | None, typer.Option(help="Peak learning rate. Default: 0.384 / width.")] = None,
    lr_min: Annotated[float | None, typer.Option(help="What the learning rate falls to.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps up to the peak. Default: a twentieth of all.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decay of the matrices.")] = None,
    max_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradients.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the target spread over all tokens.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    checkpointing: Annotated[bool | None, typer.Option(help="Recompute activations: less memory, more time.")] = None,
    compile_: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the weights, the batches and dropout.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between two evaluations.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between two checkpoints.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of --out; without one, begin again.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train the reference on texts, and leave a run that `l1 generate` talks to."""
    options = locals() | {"compile": compile_}
    names = [field.name for field in fields(TrainingConfig)]
    training = {name: options[name] for name in names if options.get(name) is not None}
    texts, model_settings = _sort_arguments(files or [], settings or [])
    default = Path("runs") / (Path(texts[0]).stem if texts else "tales")
    folder = out_folder or default
    spec = RunSpec(texts, tokenizer, preset, model_settings, training)
    try:
        with handling(commands.stop_once()):
            metrics = train_run(spec, folder, resume=resume, device=_device(device), say=out.print)
    except KeyboardInterrupt as stop:  # here, because Typer would swallow where the run stopped
        print(str(stop) or _where_it_stopped(folder), file=sys.stderr)
        if (folder / SPEC_FILE).exists():
            print(f"go on with: l1 train --resume --out {shlex.quote(str(folder))}", file=sys.stderr)
        raise typer.Exit(130) from None
    _report(metrics, folder)


def _where_it_stopped(folder: Path) -> str:
    """Say what is left of a run that was stopped while it prepared itself, or while it wrote down its end."""
    try:
        step = read_checkpoint_state(folder)["step"]
    except (OSError, ValueError):
        return "stopped before the first step"
    return f"stopped; {folder} holds the checkpoint of step {step}"


def _sort_arguments(files: list[str], settings: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Tell texts from `field=value`, so that one --set may be followed by several fields."""
    looks_like = re.compile(r"[A-Za-z_]+=[^/\\]*")
    trailing = [text for text in files if looks_like.fullmatch(text) and not os.path.exists(text)]
    known = {field.name for field in fields(L1Config)}
    values: dict[str, Any] = {}
    for setting in settings + trailing:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            free = ", ".join(sorted(known - {"vocab_size"}))
            raise ValueError(f"--set must be field=value with one of the model's fields ({free}), got {setting!r}")
        values[name] = _parse(value)
    return [text for text in files if text not in trailing], values


def _parse(value: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    if value.lower() in named:
        return named[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a CUDA GPU and torch's CUDA build; torch sees none")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _report(metrics: dict[str, Any], folder: Path) -> None:
    loss, floor = metrics["validation_loss"], metrics["floor"]
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")  # a path is worth nothing without its end
    table.add_row("validation loss", f"{loss:.4f} nats a token (perplexity {_short(perplexity(loss))})")
    if floor is not None:
        table.add_row("entropy floor", f"{floor:.4f} nats a token: no model can do better")
        table.add_row("excess", f"{loss - floor:.4f} nats, {100 * (loss - floor) / floor:.1f} % of the floor")
    table.add_row(
        "tokens", f"{metrics['tokens']:,} in {metrics['elapsed_s']:.0f} s, {metrics['tokens_per_s']:,.0f} a second"
    )
    table.add_row("run", f"{folder}  (loss.png shows the curve)")
    out.print(table)
    out.print(f'Talk to it: l1 generate {shlex.quote(str(folder))} "…"')


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 1e6 else f"{number:.1e}"


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy; below 1 sharper, above 1 wilder.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest tokens that hold p of the probability.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    seed: Annotated[int | None, typer.Option(help="For the same text again.")] = None,
    stored_as: Annotated[
        str, typer.Option(help="float32; bfloat16 and int8 are faster for a large model, and a little less exact.")
    ] = "float32",
) -> None:
    """Continue a text with a trained model, token by token."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        require_whole("seed", seed, "of at least 0 and below 2**63", lambda n: 0 <= n < 2**63)
        generator.manual_seed(seed)
    pieces = continue_text(
        run, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        do_sample=not greedy, generator=generator, stored_as=stored_as,
    )  # fmt: skip
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="tinyshakespeare or tinystories.")],
    folder: Annotated[Path, typer.Option(help="Where to put it.")] = Path("."),
) -> None:
    """Download a public text, and verify its checksum."""
    from l1_ref.downloads import download as fetch

    out.print(f"{fetch(name, folder)}")


@app.command("data")
def rebuild() -> None:
    """Rebuild the course's corpus, its tokenizer and the trained tiny model from nothing."""
    _report(rebuild_data(say=out.print), DATA_DIR / "tiny")


def main() -> None:
    """Run the command; what goes wrong becomes one line on standard error, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that lacks a character must not end a run
    try:
        app()
    except BrokenPipeError:  # who read us has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written goes nowhere
        sys.exit(1)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(f"error: the memory is not enough: {str(error).splitlines()[0]}; {_LESS_MEMORY}", file=sys.stderr)
        sys.exit(1)


_LESS_MEMORY = "a smaller model or --batch-size, or --checkpointing, needs less"


def _is_out_of_memory(error: Exception) -> bool:
    words = ("not enough memory", "can't allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


if __name__ == "__main__":
    main()
