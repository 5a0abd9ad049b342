"""Numbers as rows that people read."""

from .averages import Average, Spread, averages, row_of, spread
from .benchmark import (
    findings,
    gguf_columns,
    gguf_rows,
    machine_line,
    names_of,
    size_rows,
    time_columns,
    time_rows,
    width_columns,
    width_rows,
)
from .blends import BLEND_COLUMNS, blend_chart, blend_rows, checked_blend
from .engines import engine_notes, parallel_sizes
from .page import html, plotting_library
from .structure_picture import structure_picture
from .structure_table import STRUCTURE_COLUMNS, StructureRow, structure_cells, structure_rows
from .summary import (
    CONTEST_COLUMNS,
    bos_line,
    contest_rows,
    cut_words,
    evaluation_line,
    form_line,
    form_word,
    layer_numbers,
    layer_rows,
    number_rows,
    plan_difference,
)
from .tables import comparison_tables, write_comparison
from .value import (
    QUANTILES,
    Blend,
    Calibration,
    Check,
    Cut,
    Fit,
    LeftOut,
    Method,
    Perplexity,
    Recovery,
    Report,
    Row,
    Sample,
    Scores,
    Speed,
    Stability,
    Way,
    read_report,
)
