"""The report as one HTML page that needs no other file and no network.

render          sections -> `index.html`, by the template in `templates/`
weights_slider  the data of a slider over all snapshots of W
"""

from cobo_dist.reports.page.render import Section, caption_of, write_page
from cobo_dist.reports.page.weights_slider import make_slider

__all__ = ["Section", "caption_of", "make_slider", "write_page"]
