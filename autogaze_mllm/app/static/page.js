// Brings the videos of a looked-at video together with its chart. Run by Gradio with `element`, once; what is shown in
// there may be replaced at any time, so everything is looked up when it is needed.
const find = (query) => element.querySelector(query);
const all = (query) => [...element.querySelectorAll(query)];
const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;

let viewer = null; // the one that is set up
let frames = [];
let fps = 1;
let shown = -1;

const master = () => find(".ag-frames");
const others = () => all(".ag-kept, .ag-rebuilt");

// The bar of the chart that a time of the videos belongs to.
function barAt(time) {
  const frame = Math.floor(time * fps + 1e-3);
  let bar = 0;
  while (bar + 1 < frames.length && frames[bar + 1].at <= frame) bar++;
  return bar;
}

function show(bar) {
  if (bar === shown || !frames[bar]) return;
  shown = bar;
  find(".ag-frame").textContent = frames[bar].said;
  find(".ag-seek").value = bar;
  for (const group of all(".ag-chart g.frame")) group.classList.toggle("ag-here", Number(group.dataset.frame) === bar);
}

// Stops at a frame, in all videos.
function seek(bar) {
  bar = Math.max(0, Math.min(frames.length - 1, bar));
  pause();
  const time = (frames[bar].at + 0.5) / fps;
  for (const film of [master(), ...others()]) film.currentTime = time;
  show(bar);
}

function play() {
  for (const film of others()) film.currentTime = master().currentTime;
  for (const film of [master(), ...others()]) film.play().catch(() => {});
}

function pause() {
  for (const film of [master(), ...others()]) film.pause();
}

function follow() {
  const film = master();
  if (find(".ag-viewer") !== viewer || !film) return;
  if (!film.paused) {
    show(barAt(film.currentTime));
    for (const other of others()) {
      if (Math.abs(other.currentTime - film.currentTime) > 0.6 / fps) other.currentTime = film.currentTime;
    }
  }
  find(".ag-play").classList.toggle("ag-playing", !film.paused);
  requestAnimationFrame(follow);
}

function setUp() {
  const found = find(".ag-viewer");
  if (!found || found === viewer) return;
  viewer = found;
  frames = JSON.parse(viewer.dataset.frames);
  fps = Number(viewer.dataset.fps);
  shown = -1;
  for (const group of all(".ag-chart g.frame")) {
    group.setAttribute("tabindex", "-1");
    group.setAttribute("role", "button");
  }
  show(0);
  if (!still) play();
  requestAnimationFrame(follow);
}

element.addEventListener("click", (event) => {
  const bar = event.target.closest("g.frame");
  const tab = event.target.closest("[data-film]");
  if (bar) seek(Number(bar.dataset.frame));
  else if (event.target.closest(".ag-play")) master().paused ? play() : pause();
  else if (tab) {
    for (const button of all("[data-film]")) button.setAttribute("aria-pressed", String(button === tab));
    viewer.classList.toggle("ag-show-rebuilt", tab.dataset.film === "rebuilt");
    const link = find(".ag-save");
    link.href = find(`.ag-${tab.dataset.film}`).src;
    link.download = `${tab.textContent.toLowerCase()}.mp4`;
  }
});
element.addEventListener("input", (event) => {
  if (event.target.matches(".ag-seek")) seek(Number(event.target.value));
});
element.addEventListener("dblclick", (event) => {
  if (event.target.matches("video")) event.target.requestFullscreen();
});
// The dropped video itself: not every browser plays what is looked at here. (These events do not bubble.)
function tellPlayable(event) {
  const dropped = document.querySelector("#video");
  if (!dropped || !dropped.contains(event.target)) return;
  if (event.type === "error") dropped.dataset.unplayable = "Your browser cannot play this file. It can be gazed all the same.";
  else delete dropped.dataset.unplayable;
}
document.addEventListener("error", tellPlayable, true);
document.addEventListener("loadeddata", tellPlayable, true);
document.addEventListener("emptied", tellPlayable, true);

watch("value", setUp);
setUp();
