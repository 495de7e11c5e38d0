"""Questions typed on pictures: FigStep. The font is the one that comes with the library, so that nothing is needed."""

from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIZE = 1024  # pixels, square: processors cut the sides off a page that is wider than high
SHARE = 0.48  # of the width, on the left, which the picture takes
MARGIN = 24  # pixels
POINTS = (28, 24, 20, 16, 12, 8)  # the first size in which a text has room on its page


def typed(text: str) -> Image.Image:
    """A white page with a text."""
    page = Image.new("RGB", (SIZE, SIZE), "white")
    write_in(page, text, MARGIN, SIZE - MARGIN)
    return page


def typed_beside(picture: Image.Image, text: str) -> Image.Image:
    """A white page with a picture on the left, as large as its share of the page allows, and a text on the right."""
    page = Image.new("RGB", (SIZE, SIZE), "white")
    left = round(SHARE * SIZE)
    scale = min(left / picture.width, SIZE / picture.height)
    shown = picture.resize((max(1, round(scale * picture.width)), max(1, round(scale * picture.height))))
    page.paste(shown, (0, (SIZE - shown.height) // 2))
    write_in(page, text, left + MARGIN, SIZE - MARGIN)
    return page


def write_in(page: Image.Image, text: str, left: int, right: int) -> None:
    """Write a text between two columns of a page, as large as it fits, with lines broken between words. What has no
    room in the smallest size goes over the edge.
    """
    drawing = ImageDraw.Draw(page)

    def laid_out(points: int) -> dict[str, Any]:
        font = ImageFont.load_default(points)
        return {"xy": (left, MARGIN), "text": "\n".join(broken_lines(text, font, right - left)), "font": font}

    def has_room(layout: dict[str, Any]) -> bool:
        _, _, to, down = drawing.multiline_textbbox(**layout)
        return to <= right and down <= SIZE - MARGIN

    for points in POINTS:
        layout = laid_out(points)
        if has_room(layout):
            break
    drawing.multiline_text(**layout, fill="black")


def broken_lines(text: str, font: Any, width: int) -> list[str]:
    """A text in lines of at most `width` pixels, broken between words; a longer word has a line of its own."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
