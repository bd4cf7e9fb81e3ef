"""An answer piece by piece, as its tokens come. The pieces together are what the whole answer is: transformers' TextStreamer decodes
line by line, which drops spaces at their beginnings, and knows neither stop strings nor what a chat template puts before an answer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from transformers.generation.streamers import BaseStreamer


class AnswerStream(BaseStreamer):
    """The streamer of one row of `generate`.

    text_of  the answer that the generated tokens so far are
    say      called with each further piece
    held     characters at the end that are not said yet, for they may turn out to begin a stop string
    lead     what the answer's text begins with and its answer does not, by a chat template
    """

    def __init__(self, text_of: Callable[[list[int]], str], say: Callable[[str], None], held: int = 0, lead: str = ""):
        self.text_of, self.say, self.held, self.lead = text_of, say, held, lead.strip()
        self.said = ""
        self._tokens: list[int] = []
        self._begun = False

    def put(self, value: Tensor) -> None:
        """Takes the prompt, or an encoder-decoder's first token, which are not said, and then token after token."""
        if not self._begun:
            self._begun = True
            return
        self._tokens += value.flatten().tolist()
        text = self.text_of(self._tokens)
        text = text[: max(len(text) - self.held, 0)].rstrip()
        # Half of a character, or of the lead.
        if not text.endswith("\ufffd") and not (self.lead and self.lead.startswith(text)):
            self._say(text)

    def end(self) -> None:
        text = self.text_of(self._tokens)
        if text.startswith(self.said):
            self._say(text)
        else:  # a tokenizer that puts earlier words otherwise when later ones follow: what is right stands last
            self.say("\n" + text)

    def _say(self, text: str) -> None:
        if len(text) > len(self.said) and text.startswith(self.said):
            self.say(text[len(self.said) :])
            self.said = text
