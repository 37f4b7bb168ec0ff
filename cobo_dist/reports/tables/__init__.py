"""Problems in, tables out.

scores            the final values of each group over its seeds, and who beats Local
results           the table of each problem, and the CSV of all
paper_tables      the paper's Tables 1 and 2
rounds_to_target  rounds until each method reaches fixed accuracies
table             a table as Markdown and on the terminal
"""

from cobo_dist.reports.tables.paper_tables import table_1, table_2
from cobo_dist.reports.tables.results import NOTE, results_table, write_results_csv
from cobo_dist.reports.tables.rounds_to_target import rounds_to_target_table
from cobo_dist.reports.tables.scores import GroupResult, group_results
from cobo_dist.reports.tables.table import Table, print_table, write_markdown

__all__ = [
    "NOTE",
    "GroupResult",
    "Table",
    "group_results",
    "print_table",
    "results_table",
    "rounds_to_target_table",
    "table_1",
    "table_2",
    "write_markdown",
    "write_results_csv",
]
