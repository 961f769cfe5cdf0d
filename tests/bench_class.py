"""A whole class, graded in one command: how long it takes, and what each mistake of the catalogue costs.

    python -m tests.bench_class [NOTEBOOK] [--submissions 100] [--jobs N] [--folder FOLDER]

Each student has solved all exercises of the notebook but one, where the answer is a wrong one of `tests/checks`, put
into the cell with all that it needs. Graded by `l1 grade`, each must lose exactly the points of that exercise.
"""

import argparse
import ast
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import nbformat
from nbgrader.api import Gradebook

from l1_ref.course import classroom, sources
from l1_ref.course.results import read_results
from l1_ref.course.sources import tags
from tests.test_classroom import NO_LIMITS, environment


def wrong_answers(notebook: str) -> dict[str, list[Callable]]:
    """Return the wrong answers of `tests/checks` that have a name there, by exercise."""
    module = import_module(f"tests.checks.test_{notebook.partition('_')[2]}")
    return {
        name: [each for each in answers if getattr(module, getattr(each, "__name__", ""), None) is each]
        for name, answers in module.WRONG.items()
    }


def as_cell(exercise: str, answer: Callable) -> str:
    """Return the code of an answer: its definition, what that needs of its module, and its name in the notebook."""
    needed, module = [answer.__name__], sys.modules[answer.__module__]
    parts = definitions(module)
    for name in needed:
        for used in ast.walk(parts[name]):
            if isinstance(used, ast.Name) and used.id in parts and used.id not in needed:
                needed.append(used.id)
    code = {id(part): ast.unparse(part) for name, part in parts.items() if name in needed}
    return "\n\n".join([*code.values(), f"{exercise} = {answer.__name__}"])


def definitions(module: ModuleType) -> dict[str, ast.stmt]:
    """Return the statements of a module that bind names, in their order."""
    found: dict[str, ast.stmt] = {}
    for part in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        if isinstance(part, ast.FunctionDef | ast.ClassDef):
            found[part.name] = part
        elif isinstance(part, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0]: part for alias in part.names}
        elif isinstance(part, ast.Assign) and not isinstance(part.targets[0], ast.Subscript):
            found |= {name.id: part for name in ast.walk(part.targets[0]) if isinstance(name, ast.Name)}
    return found


def hand_in(course: Path, notebook: str, n_submissions: int) -> dict[str, tuple[str, Callable]]:
    """Write the submissions, and return which exercise each student has wrong, and how."""
    released = nbformat.read(course / "release" / notebook / f"{notebook}.ipynb", as_version=4)
    complete = {cell["id"]: cell.source for cell in sources.load(notebook).cells}
    by_exercise = wrong_answers(notebook).items()
    rounds = itertools.zip_longest(*([(name, each) for each in answers] for name, answers in by_exercise))
    chosen = [pair for pairs in rounds for pair in pairs if pair is not None][:n_submissions]
    students = {f"student-{number:04d}": pair for number, pair in enumerate(chosen)}
    for student, (exercise, answer) in students.items():
        for cell in released.cells:
            if "exercise" in tags(cell):
                is_it = cell.metadata.name == exercise
                cell.source = as_cell(exercise, answer) if is_it else complete[cell["id"]]
        path = course / "submitted" / student / notebook / f"{notebook}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(released, path)
    return students


def losses(course: Path, notebook: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each student with the points that were lost, by exercise."""
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        for each in gradebook.assignment_submissions(notebook):
            grades = {grade.name.removesuffix("-check"): grade for grade in each.notebooks[0].grades}
            yield (
                each.student.id,
                {name: g.max_score - g.auto_score for name, g in grades.items() if g.auto_score != g.max_score},
            )


def judge(course: Path, notebook: str, students: dict[str, tuple[str, Callable]]) -> bool:
    """Say how many lost what they should; name the others."""
    _, (assignment,) = read_results(course)
    outcomes = {each.student.id: each.outcomes for each in assignment.submissions}
    worth = {
        cell.metadata.name.removesuffix("-check"): cell.metadata.points
        for cell in sources.load(notebook).cells
        if "check" in tags(cell)
    }
    named, right = 0, 0
    for student, lost in losses(course, notebook):
        exercise, answer = students[student]
        named += bool(outcomes[student][exercise].mistakes)
        if lost == {exercise: worth[exercise]}:
            right += 1
        else:
            print(f"{student}: {exercise} is {answer.__name__}, and lost is {lost}")
    print(f"{right} of {len(students)} lost exactly the points of their wrong exercise; {named} had a mistake named")
    return right == len(students)


def run(course: Path, *words: object, module: str) -> float:
    """Run a command as a teacher does, and return its seconds."""
    begin = time.perf_counter()
    line = [sys.executable, "-m", module, *map(str, words)]
    subprocess.run(line, cwd=course, check=True, env=environment())
    return time.perf_counter() - begin


def main() -> int:
    """Make a class, grade it, and judge the scores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebook", nargs="?", default="03_attention", choices=sources.names())
    parser.add_argument("--submissions", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="where the classroom is made, to look at it afterwards")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        course = (chosen.folder or Path(temporary) / "class").resolve()
        classroom.make(course, [chosen.notebook])
        run(course, "generate_assignment", chosen.notebook, module="nbgrader")
        students = hand_in(course, chosen.notebook, chosen.submissions)
        seconds = run(course, "grade", course, "--jobs", chosen.jobs, *NO_LIMITS, module="l1_ref.cli")
        print(f"{len(students)} submissions of {chosen.notebook}: {seconds:.0f} s, {chosen.jobs} at a time")
        return not judge(course, chosen.notebook, students)


if __name__ == "__main__":
    sys.exit(main())
