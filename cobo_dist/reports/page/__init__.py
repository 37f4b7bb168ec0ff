"""The report as one HTML page that needs no other file and no network.

render        sections -> `index.html`, by the templates in `templates/`
explorer      what can be explored on the page, as JSON: curves, runs, clients
weights_data  W of a run in it
"""

from cobo_dist.reports.page.explorer import Explorer, encode, make_explorer
from cobo_dist.reports.page.render import (
    Live,
    Section,
    caption_of,
    render_page,
    render_tables,
    write_page,
)

__all__ = [
    "Explorer",
    "Live",
    "Section",
    "caption_of",
    "encode",
    "make_explorer",
    "render_page",
    "render_tables",
    "write_page",
]
