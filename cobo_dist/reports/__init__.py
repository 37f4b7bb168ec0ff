"""Run folders in, tables and figures out. Reads files; knows nothing of training.

reading       one run folder -> `Run`, checked; events reads its metrics.jsonl
grouping      runs -> `Group`s: the seeds of one method with one set of settings
problems      groups -> `Problem`s: those trained on the same task with the same settings
choosing      which groups a table or a figure has room for
scores        groups -> rows of final values, who does better than alone
results       the table of each problem; paper_tables: Tables 1 and 2; reached: rounds to reach
table         a table as Markdown and on the terminal
series        numbers against rounds: means over seeds, smoothing, link strengths
figures       groups -> PNG with the drawn numbers as CSV beside it
player, page  everything above -> one self-contained index.html with a slider over W
assembly      puts a report together
"""
