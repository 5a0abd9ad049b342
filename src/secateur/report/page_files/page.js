// Light and dark: as the system has it, or as somebody chooses.
const themes = ["", "light", "dark"];
const names = { "": "system", light: "light", dark: "dark" };
const button = document.getElementById("theme");
const root = document.documentElement;
let theme = "";
try { theme = localStorage.getItem("secateur-theme") || ""; } catch { /* a file may have no store */ }
function show() {
  if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
  button.textContent = `Colours: ${names[theme] ?? names[""]}`;
}
button.addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  try { localStorage.setItem("secateur-theme", theme); } catch { /* it holds for this view */ }
  show();
});
button.hidden = false;
show();

// Tables are sorted by a click on a heading: by number where there is one, else by the words.
for (const table of document.querySelectorAll("main table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sorter = document.createElement("button");
    sorter.type = "button";
    sorter.append(...head.childNodes);
    head.append(sorter);
    sorter.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const key = (row) => row.cells[column].dataset.by ?? row.cells[column].textContent;
      const number = (value) => value !== "" && Number.isFinite(Number(value));
      const order = (a, b) => {
        const [one, other] = [key(a), key(b)];
        if (number(one) && number(other)) return Number(one) - Number(other);
        return String(one).localeCompare(String(other), "en", { numeric: true });
      };
      body.append(...[...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a))));
    });
  });
}

// Plots.
const specs = JSON.parse(document.getElementById("specs").textContent);
const drawn = Object.entries(specs).map(async ([name, spec]) => {
  const place = document.getElementById(name);
  await window.vegaEmbed(place, spec, {
    renderer: "svg", actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true },
  });
});
for (const tools of document.querySelectorAll(".tools")) tools.hidden = false;
for (const step of document.querySelectorAll("[data-zoom]")) {
  step.addEventListener("click", () => {
    const place = document.getElementById(step.dataset.plot);
    const wide = Number(place.dataset.wide || 1) * (step.dataset.zoom > 0 ? 1.5 : 1 / 1.5);
    place.dataset.wide = Math.min(Math.max(wide, 1), 8);
    place.style.width = `${100 * place.dataset.wide}%`;
    window.dispatchEvent(new Event("resize"));
  });
}
Promise.all(drawn).then(() => { root.dataset.drawn = drawn.length; });
