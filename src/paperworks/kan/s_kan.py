"""S-KAN: Kolmogorov-Arnold networks whose nodes choose their family of functions.

"Activation Space Selectable Kolmogorov-Arnold Networks" (arXiv 2408.08338): an edge function is a weighted mixture over
a pool of families, training has three stages (full, selective, pruning), and what is left has one family at each node.
The names live by their subject (`selection`, `conv`, `selectable`, `fitting`, `readout`) and are importable from here.
"""

from paperworks.kan.conv import KANConv2d, PrunedSKANConv2d, SKANConv2d
from paperworks.kan.fitting import History, fit_skan
from paperworks.kan.readout import edge_formulas, edge_functions, family_table, fit_formula
from paperworks.kan.selectable import SKAN, SConvKAN, SelectionSchedule, compacted, select_all
from paperworks.kan.selection import FAMILIES, PrunedSKANLinear, SelectionError, SKANLinear

__all__ = [
    "FAMILIES",
    "SKAN",
    "History",
    "KANConv2d",
    "PrunedSKANConv2d",
    "PrunedSKANLinear",
    "SConvKAN",
    "SKANConv2d",
    "SKANLinear",
    "SelectionError",
    "SelectionSchedule",
    "compacted",
    "edge_formulas",
    "edge_functions",
    "family_table",
    "fit_formula",
    "fit_skan",
    "select_all",
]
