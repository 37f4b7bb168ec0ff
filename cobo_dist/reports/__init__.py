"""Run folders in, tables, figures and a page out. Reads files; knows nothing of training.

reading     one run folder -> `Run`, checked
grouping    runs -> `Group`s (the seeds of one method) -> `Problem`s (one task with its settings)
metrics     what a problem is judged by; statistics: over seeds and over rounds
selection   which groups a table or a figure shows
tables      final results, the paper's Tables 1 and 2, rounds to reach a target
figures     groups -> PNG, with the drawn numbers as CSV beside it
page        tables and figures -> one self-contained index.html with a slider over W
report      builds a report of all this; writing: its folders and CSV files
"""
