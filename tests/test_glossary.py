"""The glossary: it has every term and letter, its links lead somewhere, and every notebook and workspace has it."""

import math
import re
from functools import cache
from itertools import pairwise

import pytest

import l1_ref
from l1_ref.course import build, editions, pages, sources
from l1_ref.course.update import update
from l1_ref.course.workspace import learn

NAMES = sources.names()
PAGE = pages.texts()["glossary.md"]
ENTRY = re.compile(
    r"- (?P<names>\*\*.+?\*\*(?:, \*\*.+?\*\*)*)(?: \(.+?\))?(?: \(.+?\), \*\*.+?\*\*)?: (?P<text>.+) (?P<link>\[.+\))"
)
LINK = re.compile(r"\[(\d\d)\]\(([^)#]+)#(.+)\)")
RANKS = {"easy": 0, "medium": 1, "hard": 2}
HOURS = {"two hours": 120, "two and a half hours": 150}
# What notebooks print in italics or bold only because the voice would rise there.
STRESSED = """
add adds all and before below byte-i-has-id-i every faster first grow inside in-the-half-dtypes last lowest-rank
may-attend
mean-over-its-targets model new normalised nothing pair-of-byte-strings parameters place say shape some stop-early sure
take-the-logarithm-safely some-targets-do-not-count ties you your s t drawn
a-block-keeps,-in-bytes-a-token around-the-blocks,-in-bytes-a-token
goals time difficulty you-need
""".split()


def entries() -> list[tuple[list[str], str, str]]:
    """Return (names, text, link) of each term."""
    found = []
    for line in PAGE.split("## Terms\n\n")[1].splitlines():
        match = ENTRY.fullmatch(line)
        assert match, f"no entry: {line}"
        head = line[: match.start("text")]
        found.append((re.findall(r"\*\*(.+?)\*\*", head), match["text"], match["link"]))
    return found


def rows(heading: str) -> list[list[str]]:
    """Return the cells of each row of a table, its head left out."""
    part = PAGE.split(heading)[1].split("\n\n")
    table = next(piece for piece in part if piece.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


@cache
def prose(name: str) -> str:
    return "\n".join(cell.source for cell in sources.load(name).cells if cell.cell_type == "markdown")


@cache
def sections(name: str) -> dict[str, str]:
    """Return the prose below each heading, its subheadings included, by the anchor that JupyterLab gives it."""
    headings = list(re.finditer(r"^(#{1,4}) (.+)$", prose(name), flags=re.MULTILINE))
    found = {}
    for heading in headings:
        later = [each for each in headings if each.start() > heading.start() and len(each[1]) <= len(heading[1])]
        end = later[0].start() if later else None
        found[heading[2].replace("`", "").replace(" ", "-")] = prose(name)[heading.start() : end]
    return found


def words(text: str) -> str:
    """Return a text in one line and in small letters, without what only formats it."""
    return " ".join(re.sub(r"[*`$\\]", "", text).replace("_", " ").lower().split())


def stems(name: str) -> list[str]:
    """Return what a term may look like in a sentence: its end may be bent."""
    name = words(name)
    bent = {name, name.removesuffix("e"), name.removesuffix("ing"), name.removesuffix("ion"), name.removesuffix("s")}
    return [each for each in bent if len(each) >= min(len(name), 3)]


def target(link: str) -> str:
    """Return the prose that a link leads to, or fail."""
    number, file, anchor = LINK.fullmatch(link).groups()
    name = file.removesuffix(".ipynb")
    assert name in NAMES and name.startswith(number), link
    assert anchor in sections(name), f"{link}: there is {sorted(sections(name))}"
    return sections(name)[anchor]


@pytest.mark.parametrize(
    ("names", "text", "link"), entries(), ids=lambda part: part[0] if isinstance(part, list) else ""
)
def test_a_term_is_short_and_its_link_leads_to_where_it_stands(names, text, link):
    assert text[0].isupper() or text[0].isdigit(), text
    assert text.endswith(".") and 1 <= len(re.findall(r"[.?!](?= |$)", text)) <= 2, text
    there = words(target(link))
    assert any(stem in there for name in names for stem in stems(name)), f"{names} stands not in {link}"


def test_terms_are_in_order_and_each_stands_once():
    firsts = [(names[0].lower(), text) for names, text, _ in entries()]
    assert all(one[0] <= other[0] for one, other in pairwise(firsts)), [
        (one[0], other[0]) for one, other in pairwise(firsts) if one[0] > other[0]
    ]
    twice = {name for (name, _), (other, _) in pairwise(firsts) if name == other}
    assert twice == {"head"}  # attention's, and the model's


def stressed(name: str) -> list[str]:
    """Return what a notebook's prose prints in italics or bold, in small letters."""
    text = re.sub(r"`[^`]*`|\$\$?[^$]*\$\$?", "", prose(name))
    found = re.findall(r"(?<![*\w])\*{1,2}([^*\s][^*]*?)\*{1,2}(?![*\w])", text)
    return [words(each).strip(".,:") for each in found]


def known() -> set[str]:
    return {words(name) for names, _, _ in entries() for name in names}


def is_known(term: str) -> bool:
    singular = {
        term,
        term.removesuffix("s"),
        term.removesuffix("es"),
        term.removesuffix("d") if term.endswith("ed") else term,
    }
    return bool(singular & known()) or any(term + "s" == each for each in known())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_sets_in_italics_is_a_term_or_only_stressed(name):
    strange = {term for term in stressed(name) if not is_known(term) and term.replace(" ", "-") not in STRESSED}
    assert strange == set()


def test_nothing_is_excused_that_no_notebook_says():
    said = {term.replace(" ", "-") for name in NAMES for term in stressed(name)}
    assert set(STRESSED) <= said


def test_every_letter_of_the_legend_is_there_with_the_legends_meaning():
    legend = re.findall(r"\| ([A-Z]) \| ([^|]+?) (?=\|)", sections(NAMES[0])["The-road"])
    assert len(legend) == 8
    table = {row[0]: row for row in rows("## Letters")}
    for letter, meaning in legend:
        assert table[letter][1].removeprefix("batch: ") == meaning.removeprefix("batch: "), letter
    for row in [*table.values(), *rows("Other signs:")]:
        target(row[-1])


def test_the_sizes_of_tiny_are_right():
    tiny = l1_ref.PRESETS["tiny"]
    sizes = {row[0]: row[2].replace(",", "").removeprefix("up to ") for row in rows("## Letters")}
    truth = {
        "T": tiny.max_seq_length, "S": tiny.max_seq_length, "C": tiny.n_embd, "H": tiny.n_heads,
        "D": tiny.n_embd // tiny.n_heads, "F": tiny.n_inner, "V": tiny.vocab_size, "L": tiny.n_layers,
    }  # fmt: skip
    assert {letter: sizes[letter] for letter in truth} == {letter: str(size) for letter, size in truth.items()}


# The first cell of each notebook.


@pytest.mark.parametrize("name", NAMES)
def test_a_notebooks_first_cell_says_time_difficulty_and_prerequisites_and_links_the_glossary(name):
    cells = sources.load(name).cells
    first = cells[0].source
    assert "Words and letters: [glossary](glossary.md)." in first
    assert len(re.findall(r"\*\*You need\.\*\* \S.+", first)) == 1
    exercises = [cell.metadata for cell in cells if "exercise" in sources.tags(cell)]
    minutes = [each["minutes"] for each in exercises]
    time = re.search(r"\*\*Time\.\*\* About ((\d+) minutes|two and a half hours|two hours)[.,]", first)
    assert int(time[2] or HOURS[time[1]]) >= sum(minutes)
    # The difficulty is where the minutes of the exercises lie on average.
    mean = sum(RANKS[each["difficulty"]] * each["minutes"] for each in exercises) / sum(minutes)
    (difficulty,) = re.findall(r"\*\*Difficulty\.\*\* (\w+)\.", first)
    assert RANKS[difficulty.lower()] == math.floor(mean + 0.5), mean


# Where it lies.


def test_it_is_built_beside_the_notebooks_and_compared(tmp_path, monkeypatch):
    source = tmp_path / "src"
    source.mkdir()
    (source / "page.md").write_text("# A page\n", encoding="utf-8")
    monkeypatch.setattr(sources, "SOURCES", source)
    build.build([], execute=False, folder=tmp_path)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == "# A page\n" and build.check_built(tmp_path) == []
    (tmp_path / "page.md").write_text("another", encoding="utf-8")
    assert build.check_built(tmp_path) == ["page.md: it is not that of the source"]
    (tmp_path / "page.md").unlink()
    assert build.check_built(tmp_path) == ["page.md: it is not that of the source"]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace of one small notebook and one page."""
    source = tmp_path / "src"
    source.mkdir()
    (source / "00_small.py").write_text("# %% [markdown]\n# Text.\n", encoding="utf-8")
    (source / "glossary.md").write_text("first edition\n", encoding="utf-8")
    monkeypatch.setattr(sources, "SOURCES", source)
    learn(tmp_path / "mine")
    return tmp_path / "mine"


def read(path) -> str:
    return path.read_text(encoding="utf-8")


def test_a_workspace_gets_it_and_a_readers_change_stays(workspace):
    page = workspace / "glossary.md"
    assert read(page) == "first edition\n"
    page.write_text("my notes", encoding="utf-8")
    said = []
    learn(workspace, say=said.append)
    assert read(page) == "my notes" and said == []
    assert update(workspace).backup is None and read(page) == "my notes"
    page.unlink()
    learn(workspace)
    assert read(page) == "first edition\n"


def test_an_update_brings_the_new_one_and_keeps_what_the_reader_had(workspace):
    page = workspace / "glossary.md"
    page.write_text("my notes", encoding="utf-8")
    (sources.SOURCES / "glossary.md").write_text("second edition\n", encoding="utf-8")
    said = []
    learn(workspace, say=said.append)
    assert read(page) == "my notes" and "a newer edition is there" in said[0]
    report = update(workspace)
    assert read(page) == "second edition\n" and read(report.backup / "glossary.md") == "my notes"
    assert "glossary.md: the new edition" in report.lines()
    assert update(workspace).backup is None and pages.changes(workspace) == []


def test_a_workspace_from_before_there_was_one_gets_it(workspace):
    page, given = workspace / "glossary.md", workspace / editions.EDITION / "glossary.md"
    given.unlink()
    assert not pages.hand_out(workspace) and update(workspace).backup is None and given.is_file()
    given.unlink()
    page.write_text("my own glossary", encoding="utf-8")
    report = update(workspace)
    assert read(page) == "first edition\n" and read(report.backup / "glossary.md") == "my own glossary"


def test_a_folder_of_that_name_is_the_readers_and_stops_no_update(workspace):
    page = workspace / "glossary.md"
    page.unlink()
    page.mkdir()
    assert not pages.hand_out(workspace)
    assert update(workspace).backup is None and page.is_dir()
