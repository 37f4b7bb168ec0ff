"""Watching runs while they go on: their folders are read, nothing is written and no run is spoken to.

followed_run  one run folder, read again and again, and how its run stands
watch_list    the run folders of a command line, and those that appear in a sweep's folder
terminal_view all of them on a terminal, or as lines
live_page     the report's page of them, and what is new on it
server        a web server of that page: read-only, local, or with a token
"""
