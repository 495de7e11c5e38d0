
// ---- the table: sorting

document.querySelectorAll("#table .columns button").forEach((button, column) => {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const rising = head.getAttribute("aria-sort") !== "ascending";
    document.querySelectorAll("#table th[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const value = (row) => (column ? row.cells[column].dataset.value : row.cells[0].textContent);
    const body = document.querySelector("#table tbody");
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return rising ? order : -order;
    });
    body.replaceChildren(...rows);
  });
});

// ---- what scrolls has a shadow at each edge behind which there is more

function shade(scroll) {
  const frame = scroll.parentElement;
  const fixed = scroll.querySelector("tbody th");
  frame.style.setProperty("--fixed", `${fixed ? fixed.offsetWidth : 0}px`);
  frame.classList.toggle("before", scroll.scrollLeft > 1);
  frame.classList.toggle("after", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 1);
}

const sizes = new ResizeObserver((entries) => entries.forEach((entry) => shade(entry.target)));
document.querySelectorAll(".frame > .scroll").forEach((scroll) => {
  scroll.addEventListener("scroll", () => shade(scroll), { passive: true });
  sizes.observe(scroll);
});

// ---- downloads, made of what the page holds

function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

document.querySelectorAll("[data-download]").forEach((button) => {
  const name = button.dataset.download;
  button.addEventListener("click", () => download(name, data.downloads[name], "text/plain;charset=utf-8"));
});

document.querySelectorAll("[data-svg]").forEach((button) => {
  button.addEventListener("click", () => {
    const shown = [...button.closest("figure").querySelectorAll("svg")].find((each) => !each.closest("[hidden]"));
    const name = button.dataset.svg.toLowerCase().replaceAll(/[^a-z0-9]+/g, "_");
    download(`${name}.svg`, new XMLSerializer().serializeToString(shown), "image/svg+xml");
  });
});
