"use strict";
{
  document.documentElement.classList.add("js");
  const table = document.getElementById("cases");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const keys = JSON.parse(document.getElementById("keys").textContent);
  const headings = [...table.tHead.rows[0].cells];
  const form = document.getElementById("filter");
  const collator = new Intl.Collator(undefined, { numeric: true });

  // ---- sorting: rows without a key (a refused case has no probability) come last in both directions
  const compare = (a, b) => (typeof a === "number" ? a - b : collator.compare(a, b));
  const sortBy = (column, direction) => {
    const sign = direction === "ascending" ? 1 : -1;
    const order = rows.map((_, i) => i).sort((i, j) => {
      const a = keys[i][column];
      const b = keys[j][column];
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return sign * compare(a, b) || i - j;
    });
    const sorted = document.createDocumentFragment();
    for (const i of order) sorted.append(rows[i]);
    body.append(sorted);
    headings.forEach((th, i) => th.setAttribute("aria-sort", i === column ? direction : "none"));
  };
  headings.forEach((th, column) => {
    th.firstElementChild.addEventListener("click", () => {
      const other = { ascending: "descending", descending: "ascending" };
      sortBy(column, other[th.getAttribute("aria-sort")] ?? th.dataset.first);
    });
  });

  // ---- filtering: by all words of the search, and by one of three groups
  const numWarnings = headings.length - 2;
  const isRefused = headings.length;
  let texts;
  const filterRows = () => {
    const words = form.querySelector("input[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
    const group = form.elements.show.value;
    if (words.length) texts ??= rows.map((row) => row.textContent.toLowerCase());
    let shown = 0;
    rows.forEach((row, i) => {
      const inGroup = group === "all" || (group === "refused" ? keys[i][isRefused] : keys[i][numWarnings] > 0);
      row.hidden = !(inGroup && words.every((word) => texts[i].includes(word)));
      shown += !row.hidden;
    });
    form.querySelector("output").textContent =
      shown === rows.length ? `${shown.toLocaleString("en")} cases` : `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} cases`;
  };
  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filterRows, 100);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  filterRows();

  // ---- previews: the link of a picture shows its copy inside this page
  const dialog = document.getElementById("preview");
  let link;
  const neighbour = (step) => {
    const links = [...body.querySelectorAll("tr:not([hidden]) a[data-preview]")];
    return links[links.indexOf(link) + step];
  };
  const show = (next) => {
    if (!next) return;
    link = next;
    const row = link.closest("tr");
    dialog.querySelector("h2").textContent = row.querySelector("th bdi").textContent;
    const image = dialog.querySelector("img");
    const picture = document.getElementById("preview-" + link.dataset.preview);
    image.src = "data:" + picture.dataset.type + ";base64," + picture.textContent;
    image.alt = "Preview of " + row.querySelector("th bdi").textContent;
    dialog.querySelector(".before").disabled = !neighbour(-1);
    dialog.querySelector(".after").disabled = !neighbour(1);
    if (!dialog.open) dialog.showModal();
  };
  dialog.querySelector(".before").addEventListener("click", () => show(neighbour(-1)));
  dialog.querySelector(".after").addEventListener("click", () => show(neighbour(1)));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => link.focus());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(neighbour(-1));
    if (event.key === "ArrowRight") show(neighbour(1));
  });

  // ---- the viewer: a volume is loaded only when it is opened
  const viewer = document.getElementById("viewer");
  const openViewer = () => {
    const choice = viewer.querySelector("select");
    const frame = viewer.querySelector("iframe");
    frame.title = "Three planes of " + choice.selectedOptions[0].textContent;
    frame.srcdoc = JSON.parse(document.getElementById("viewer-" + choice.value).textContent);
  };
  if (viewer) {
    viewer.addEventListener("toggle", () => {
      if (!viewer.open) return;
      openViewer();
      viewer.scrollIntoView({ block: "nearest" });
    });
    viewer.querySelector("select").addEventListener("change", openViewer);
  }

  body.addEventListener("click", (event) => {
    const preview = event.target.closest("a[data-preview]");
    const button = event.target.closest("button[data-viewer]");
    if (preview && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      show(preview);
    }
    if (button) {
      viewer.querySelector("select").value = button.dataset.viewer;
      if (viewer.open) openViewer();
      viewer.open = true;
      viewer.scrollIntoView();
      viewer.querySelector("summary").focus({ preventScroll: true });
    }
  });
}
