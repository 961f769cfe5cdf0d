"""Every figure of the course, in one style: `style` holds what all share, and each notebook's figures have a module."""

from l1_ref.plots.style import COLOURS as COLOURS
from l1_ref.plots.style import STYLE as STYLE
from l1_ref.plots.style import Slot as Slot
from l1_ref.plots.style import explore as explore
from l1_ref.plots.style import loss_curve as loss_curve
from l1_ref.plots.style import png as png
from l1_ref.plots.style import probabilities as probabilities
from l1_ref.plots.style import show as show
from l1_ref.plots.style import visible as visible
