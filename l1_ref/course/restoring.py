"""The cells that a submission must hold: each of the teacher's once, where the student has it, as nbgrader knows it."""

from collections.abc import Iterable
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.preprocessors import NbGraderPreprocessor

from l1_ref.course.merging import plain
from l1_ref.course.signatures import defines
from l1_ref.course.sources import CHECK, grade_id


class RestoreCells(NbGraderPreprocessor):
    """In nbgrader's autograde: puts back cells that a student deleted, and what nbgrader has to know of each.

    Of a cell that the student copied, one is nbgrader's; the others run as any cell of the student's own.
    """

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        """Restore a submission's cells.

        Args:
            nb: The submission.
            resources: nbgrader's.
        """
        where = resources["nbgrader"]
        with Gradebook(where["db_url"]) as gradebook:
            known = gradebook.find_notebook(where["notebook"], where["assignment"])
            points = {cell.name: cell.max_score for cell in known.grade_cells}
            solutions = {cell.name for cell in known.solution_cells}
            found = _found(nb.cells, known.source_cells)
            for cell in nb.cells:  # nbgrader takes no notebook in which a cell is there twice, or is another notebook's
                cell.metadata.pop("nbgrader", None)
            at = 0
            for source in known.source_cells:
                if source.name in found:
                    cell = found[source.name]
                else:
                    make = nbformat.v4.new_code_cell if source.cell_type == "code" else nbformat.v4.new_markdown_cell
                    cell = make(source.source)
                    nb.cells.insert(at, cell)
                at = next(i for i, each in enumerate(nb.cells, start=1) if each is cell)
                cell.metadata["nbgrader"] = _metadata(source, points, solutions)
        return nb, resources


def _found(cells: list[NotebookNode], sources: Iterable[Any]) -> dict[str, NotebookNode]:
    """Return the submission's cell for each of the teacher's that it holds: by nbgrader's id, else by its text.

    Some programs drop the metadata, where the id stands. Of several checks it is the last, as in `l1 check`; of several
    answers, the one that this check sees.
    """
    places: dict[str, int] = {}
    for source in sorted(sources, key=lambda each: not each.locked):  # the checks first
        check = places.get(f"{source.name}{CHECK}", len(cells))
        ranks = []
        for i, cell in enumerate(cells):
            known, fits = grade_id(cell) == source.name, cell.cell_type == source.cell_type
            same = plain(cell.source) == plain(source.source) if source.locked else defines(cell.source, source.name)
            if known or (fits and same and not grade_id(cell)):
                ranks.append((known, fits, source.locked or same, i < check, i))
        if ranks:
            places[source.name] = max(ranks)[-1]
    return {name: cells[i] for name, i in places.items()}


def _metadata(source: Any, points: dict[str, float], solutions: set[str]) -> NotebookNode:
    grade = {"points": points[source.name]} if source.name in points else {}
    return NotebookNode(
        grade=source.name in points, solution=source.name in solutions, locked=source.locked, task=False,
        schema_version=3, grade_id=source.name, cell_type=source.cell_type, **grade,
    )  # fmt: skip
