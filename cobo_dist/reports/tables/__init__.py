"""Problems in, tables out.

scores            the final values of each group over its seeds, and who beats Local
results           the table of each problem, and the CSV of all
paper_tables      the paper's Tables 1 and 2
rounds_to_target  rounds until each method reaches fixed accuracies
table             a table as Markdown and on the terminal
"""
