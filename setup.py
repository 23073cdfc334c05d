"""Packaging reads settings.ini, the one place that names version, dependencies and entry points."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
ASSETS = ["py.typed", *(f"**/*.{kind}" for kind in ("mplstyle", "html", "css", "js", "yml"))]
extras = {
    key.removesuffix("_requirements"): cfg[key].split()
    for key in cfg if key.endswith("_requirements")
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    python_requires=">=" + cfg["min_python"],
    # the report templates live with the other notebooks and ship inside the package
    # and so does the small image-text model that tests and demo use
    packages=[*find_packages(include=["anomaly_nb", "anomaly_nb.*"]), "anomaly_nb.reports.templates", "anomaly_nb.features.tiny_clip_model"],
    package_dir={"anomaly_nb.reports.templates": "nbs/reports", "anomaly_nb.features.tiny_clip_model": "data/tiny_clip"},
    package_data={"anomaly_nb.reports.templates": ["*.ipynb"], "anomaly_nb.features.tiny_clip_model": ["*"], "anomaly_nb": ASSETS},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
