"""The site: `python -m sphinx -W --keep-going -b html docs build/site`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
# Notebooks are run by processes of their own.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])

from funprop.version import __version__ as release  # noqa: E402, F401

project = "funprop"
author = "The funprop authors"
copyright = author  # noqa: A001  # Sphinx's name
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "formulas",
]
exclude_patterns = ["images"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

# What a notebook gave is kept in build/, and run again when its code changes.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_typehints = "none"  # the docstrings say what is taken and given
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
python_maximum_signature_line_length = 88
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "funprop"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1f5f8b",
        "color-brand-content": "#1f5f8b",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cb7e0",
        "color-brand-content": "#7cb7e0",
    },
}
html_math_renderer = "mathml"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
