"""Parse the HTML of a report."""

from html.parser import HTMLParser


class Tags(HTMLParser):
    """``seen``: all tags. ``attributes``: all attributes. ``text``: the text between tags."""

    VOID = frozenset({"meta", "img", "br", "line", "circle", "polyline"})

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    """Parse a page. Asserts that every opened tag is closed."""
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert not tags.open
    return tags
