"""Run folders in, tables and figures out. Reads files; knows nothing of training.

reading   one run folder -> `Run`, checked
grouping  runs -> `Group`s: the seeds of one method with one set of settings
series    numbers against rounds: means over seeds, smoothing, link strengths
table     groups -> rows -> Markdown, CSV, terminal
figures   groups -> PNG with the drawn numbers as CSV beside it
page      everything above -> one self-contained index.html
"""
