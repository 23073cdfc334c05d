"""Packaging reads settings.ini, the one place that names version, dependencies and entry points."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
ASSETS = ["py.typed", *(f"**/*.{kind}" for kind in ("mplstyle", "html", "css", "js", "yml"))]
BESIDE = {"anomaly_nb.reports.templates": "nbs/reports", "anomaly_nb.features.tiny_clip_model": "data/tiny_clip"}
extras = {
    key.removesuffix("_requirements"): cfg[key].split()
    for key in cfg if key.endswith("_requirements")
}


def description() -> str:
    """The README for a package index, which shows images and follows links by whole addresses only."""
    text = (here / "README.md").read_text(encoding="utf-8")
    raw = cfg["git_url"].replace("github.com", "raw.githubusercontent.com") + f"/{cfg['branch']}/"
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{raw}", text)
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?!https?:|#)", rf"\1{cfg['git_url']}/blob/{cfg['branch']}/", text)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=description(),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": f"{cfg['doc_host']}{cfg['doc_baseurl']}",
        "Changes": f"{cfg['git_url']}/blob/main/CHANGELOG.md",
        "Issues": f"{cfg['git_url']}/issues",
    },
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Jupyter",
        "Intended Audience :: Developers",
        "Intended Audience :: Manufacturing",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    keywords=cfg["keywords"],
    python_requires=">=" + cfg["min_python"],
    # the report templates live with the other notebooks and ship inside the package
    # and so does the small image-text model that tests and demo use
    packages=[*find_packages(include=["anomaly_nb", "anomaly_nb.*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={"anomaly_nb": ASSETS} | {name: ["*.ipynb", "*.json", "*.safetensors"] for name in BESIDE},
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
