"""Which conversations a chat template renders, and what of them is trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from mhr.data.example import Example
from mhr.errors import ConfigError, nearest

OWN, PLAIN = "auto", "none"
TRAIN_ON = ("last", "all")
ENDINGS = (".jinja", ".jinja2", ".j2", ".txt")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How the rows of a decoder become text.

    template  None: conversations by the tokenizer's own chat template, other rows as plain text; "auto": every row by the
              tokenizer's own, a row that is no conversation as one user turn and its answer; "none": every row as plain text; a
              packaged name, the name of one of the tokenizer's, a file, or Jinja itself: every row by that one
    train_on  "last": the last assistant turn; "all": every assistant turn
    system    system turn of rows that have none
    """

    template: str | None = None
    train_on: str = "last"
    system: str | None = None

    def __post_init__(self) -> None:
        if self.train_on not in TRAIN_ON:
            raise ConfigError(
                f"train_on is {self.train_on!r}, expected last or all: {nearest(self.train_on, TRAIN_ON)}"
            )
        for name, value, usual in (("train_on", self.train_on, "last"), ("system", self.system, None)):
            if self.template == PLAIN and value != usual:
                raise ConfigError(f"{name} is {value!r}, but chat_template is 'none', and plain text has no turns")

    @property
    def name(self) -> str:
        """The template in a word or two."""
        return "Jinja of its own" if is_text(self.template) else self.template or OWN

    @property
    def chosen(self) -> bool:
        """Whether a template was asked for by name, so that it renders every row."""
        return self.template not in (None, PLAIN)

    def renders(self, example: Example) -> bool:
        """Whether a template renders this example."""
        return self.chosen or (self.template is None and bool(example.messages))

    def with_text(self) -> ChatFormat:
        """The same with what its file holds in place of the file's path, so that it needs the file no more. Raises ConfigError where
        it cannot be read or does not parse."""
        return replace(self, template=read_file(self.template)) if is_file(self.template) else self


def is_text(name: str | None) -> bool:
    """Whether a template is Jinja itself."""
    return name is not None and ("{{" in name or "{%" in name)


def is_file(name: str | None) -> bool:
    """Whether a template is a path."""
    return name is not None and not is_text(name) and (Path(name).suffix in ENDINGS or "/" in name)


def read_file(name: str | None) -> str:
    """The template in a file. Raises ConfigError where it cannot be read or holds no Jinja."""
    try:
        text = Path(name or "").read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ConfigError(f"cannot read the chat template {name}: {reason}") from None
    if not is_text(text):
        raise ConfigError(f"{name} is no chat template: expected Jinja, such as {{{{ messages[0]['content'] }}}}")
    check_syntax(text, f"the chat template {name}")
    return text


def packaged_chat_templates() -> list[str]:
    """Names of the packaged chat templates."""
    folder = resources.files("mhr.data").joinpath("chat_templates")
    return sorted(entry.name.removesuffix(".jinja") for entry in folder.iterdir() if entry.name.endswith(".jinja"))


def packaged_text(name: str) -> str:
    """The packaged chat template of a name."""
    return resources.files("mhr.data").joinpath("chat_templates", f"{name}.jinja").read_text("utf-8")


def check_syntax(text: str, origin: str) -> None:
    """Raise ConfigError for a template that does not parse, naming the line."""
    import jinja2  # loaded where there is a template

    try:
        jinja2.Environment(extensions=[_generation(), "jinja2.ext.loopcontrols"]).parse(text)
    except jinja2.TemplateSyntaxError as error:
        said = f"{error.message or 'not Jinja'}"
        raise ConfigError(f"{origin} does not parse, line {error.lineno}: {said}; expected a Jinja template") from None


def _generation() -> Any:
    """{% generation %}, which transformers reads in templates, as any block."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation
