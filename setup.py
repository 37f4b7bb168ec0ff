"""The build step that setup.cfg has no word for: configs and job scripts become part of the package."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
project_files = runpy.run_path(str(ROOT / "cobo_dist" / "project_files.py"))["project_files"]


class BuildWithProject(build_py):
    """Copies what `cobo-init` lays out into `cobo_dist/project`. An editable install reads the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in project_files(ROOT):
                target = Path(self.build_lib, "cobo_dist", "project", file)
                self.mkpath(str(target.parent))
                self.copy_file(str(ROOT / file), str(target))


setup(cmdclass={"build_py": BuildWithProject})
