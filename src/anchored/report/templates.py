"""The Jinja templates of the pages; all values are escaped."""

import jinja2


def template(name: str) -> jinja2.Template:
    """A template of this folder; an undefined variable is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anchored", "report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)
