"""Questions typed on pictures: FigStep. The font is the one that comes with the library, so that nothing is needed."""

from PIL import Image, ImageDraw, ImageFont

SIZE = 1024  # pixels, square: processors cut the sides off a page that is wider than high
SHARE = 0.48  # of the width, on the left, which the picture takes
MARGIN = 24  # pixels
POINTS = 28


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
    """Write a text between two columns of a page, from the top, with lines broken between words."""
    font = ImageFont.load_default(POINTS)
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > right - left:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    ImageDraw.Draw(page).multiline_text((left, MARGIN), "\n".join(lines), fill="black", font=font)
