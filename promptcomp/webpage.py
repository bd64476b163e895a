"""Pages that need nothing else: one style (assets/page.css), and texts that are escaped wherever they come from."""

from __future__ import annotations

from importlib import resources
from typing import Any

from promptcomp.plain import printable


def web_page(package: str, template: str, **values: Any) -> str:
    """A page from a template of a package (jinja2), which may use `css`; control characters in texts become escapes."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def text(name: str) -> str:
        return resources.files(package).joinpath(*name.split("/")).read_text(encoding="utf-8")

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(text), trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    style = (resources.files("promptcomp") / "assets" / "page.css").read_text(encoding="utf-8")
    return printable(environment.get_template(template).render(css=Markup(style), **values))
