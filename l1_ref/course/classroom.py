"""A teacher's course: a folder that nbgrader works in, with this course's notebooks as its sources."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from l1_ref.checks.messages import STUB_MESSAGE
from l1_ref.course import pages, sources
from l1_ref.course.blank import go_on_behind_blanks, instructor
from l1_ref.course.build import as_text
from l1_ref.files import write_atomic

CONFIG = "nbgrader_config.py"
_CONFIG_TEXT = '''"""nbgrader's settings for this course: those of L1, then your own, which L1 never overwrites."""

from l1_ref.course.classroom import configure

c = get_config()  # noqa: F821
configure(c)
'''
MISREAD = "*?[]"  # nbgrader looks for files by patterns, and does not quote what stands in their paths
_OURS = {CONFIG, "source", "release", "submitted", "autograded", "feedback", "gradebook.db"}


class ClassroomError(ValueError):
    """A folder cannot serve as a classroom; the message says why and what to do."""


class Made(NamedTuple):
    """What `make` did.

    Args:
        written: Files that are new.
        unchanged: Files that are as they would be written.
        kept: Files that hold something else, and were left alone.
    """

    written: list[Path]
    unchanged: list[Path]
    kept: list[Path]


def make(folder: Path | str, notebooks: Iterable[str] | None = None) -> Made:
    """Make an nbgrader course, or add to one; a file that is there is never overwritten.

    Args:
        folder: Where; made if missing. An existing folder must be empty or a classroom.
        notebooks: Names, or their beginnings such as "03"; all where None. Each becomes an assignment of its own.

    Raises:
        ClassroomError: The folder is a file, cannot be written, or holds something else.
        ValueError: There is no notebook of a name, or several.
    """
    folder = Path(folder).expanduser()
    names = [_named(each) for each in notebooks] if notebooks else sources.names()
    _require_usable(folder)
    made = Made([], [], [])
    try:
        _write(folder / CONFIG, _CONFIG_TEXT, made)
        (folder / "submitted").mkdir(exist_ok=True)
        for name in names:
            _write(folder / "source" / name / f"{name}.ipynb", as_text(teachers_edition(name)), made)
            for page, text in pages.texts().items():  # notebooks link to them
                _write(folder / "source" / name / page, text, made)
    except OSError as error:
        raise ClassroomError(f"the classroom {folder} cannot be written ({error.strerror or error})") from None
    return made


def _named(name: str) -> str:
    known = sources.names()
    found = [each for each in known if each == name] or [each for each in known if name and each.startswith(name)]
    if len(found) != 1:
        what = f"several notebooks begin with {name!r}" if found else f"there is no notebook {name!r}"
        raise ValueError(f"{what}; there are: {', '.join(found or known)}; several: --notebooks 03 --notebooks 04")
    return found[0]


def require_readable(folder: Path) -> None:
    """Refuse a classroom in a path that nbgrader, or its database, takes for another.

    Args:
        folder: The classroom.

    Raises:
        ClassroomError: The path holds such a character.
    """
    path = str(folder.resolve())
    odd = [each for each in f"{MISREAD}%" if each in path]
    if odd:
        raise ClassroomError(f"nbgrader misreads a path with {' '.join(odd)}; choose or name another, got {path}")


def _require_usable(folder: Path) -> None:
    require_readable(folder)
    if folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others and not (folder / CONFIG).is_file():
            raise ClassroomError(
                f"{folder} holds other files ({', '.join(others[:3])}{', …' if len(others) > 3 else ''}) and no "
                f"{CONFIG}; choose an empty or a new folder: l1 classroom FOLDER"
            )
    elif os.path.lexists(folder):
        raise ClassroomError(f"the classroom must be a folder, got the file {folder}; choose another")


def _write(path: Path, text: str, made: Made) -> None:
    if not os.path.lexists(path):
        write_atomic(path, text)
        made.written.append(path)
    elif path.is_file() and path.read_bytes() == text.encode():
        made.unchanged.append(path)
    else:
        made.kept.append(path)


def teachers_edition(name: str) -> Any:
    """Return the notebook that nbgrader calls the source: solutions marked, points set.

    What nbgrader makes of it for students behaves as the course's own blank edition does.

    Args:
        name: Such as "03_attention".
    """
    notebook = instructor(sources.load(name))
    go_on_behind_blanks(notebook)
    return notebook


def configure(c: Any) -> None:
    """Give nbgrader this course's settings: its blanks, the repair of submissions, and the limits that they run in.

    Args:
        c: What `get_config()` returns in an nbgrader_config.py.
    """
    # nbgrader calls alembic by its name, which is found only where the environment is active, or so.
    programs, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if programs not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, [programs, path]))
    c.CourseDirectory.course_id = "l1"
    c.ClearSolutions.code_stub = {"python": f'raise NotImplementedError("{STUB_MESSAGE}")'}
    c.Autograde.sanitize_preprocessors = [_full(each) for each in _SANITIZE]
    c.Autograde.autograde_preprocessors = list(_autograde())


_SANITIZE = (
    "ClearOutput l1_ref.course.restoring.RestoreCells OverwriteKernelspec OverwriteCells CheckCellMetadata"
).split()


def _autograde() -> Iterator[str]:
    yield "l1_ref.course.integrity.RefuseCheats"
    yield "l1_ref.course.execution.RunApart"
    steps = ("IgnorePattern", "LimitOutput", "SaveAutoGrades", "AssignLatePenalties", "CheckCellMetadata")
    yield from map(_full, steps)


def _full(name: str) -> str:
    return name if "." in name else f"nbgrader.preprocessors.{name}"
