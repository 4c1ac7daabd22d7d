// Small line charts as SVG, in the palette of curves.png; no library, nothing from another machine.
"use strict";

const charts = (() => {
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const WIDTH = 300, HEIGHT = 190, LEFT = 40, RIGHT = 10, TOP = 10, BOTTOM = 34;
  const TITLES = { auc: "AUC" };

  function element(name, attributes, text) {
    const made = document.createElementNS(NAMESPACE, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function points(rows, column) {
    return rows.filter(row => Number.isFinite(row[column])).map(row => [row.round, row[column]]);
  }

  // A round step that gives at most five lines.
  function ticks(low, high) {
    const span = high - low || 1;
    const power = 10 ** Math.floor(Math.log10(span / 4));
    const step = [1, 2, 5, 10].map(each => each * power).find(each => span / each <= 5);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
    return { values: found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  function wholeTicks(low, high) {
    const step = Math.max(1, Math.ceil((high - low) / 8));
    const found = [];
    for (let value = low; value <= high; value += step) found.push(value);
    return found;
  }

  function seriesOf(column, history, workers) {
    const byWorker = new Map();
    for (const row of workers) {
      if (!byWorker.has(row.worker)) byWorker.set(row.worker, []);
      byWorker.get(row.worker).push(row);
    }
    const thin = byWorker.size > 1 ? [...byWorker.values()].map(rows => ["worker", points(rows, column)]) : [];
    return [...thin, ["training", points(history, column)], ["validation", points(history, `val_${column}`)],
      ["central", points(history, `central_${column}`)]].filter(([, found]) => found.length);
  }

  function describe(title, series) {
    const words = { training: "training", validation: "the global model at the workers", central: "the global model on the central test set" };
    const last = series.filter(([kind]) => kind !== "worker")
      .map(([kind, found]) => `${words[kind]} ${found.at(-1)[1].toFixed(3)} in round ${found.at(-1)[0]}`);
    return `${title}: ${last.join(", ")}.`;
  }

  // Some room around the values; of shares from 0 to 1 at least a tenth is shown, so that noise looks like noise.
  function bounds(values, isShare) {
    const least = Math.min(...values), most = Math.max(...values);
    const margin = Math.max((most - least) * 0.06, isShare ? (0.1 - (most - least)) / 2 : 0, 1e-6);
    const high = isShare ? Math.min(1, most + margin) : most + margin;
    const low = isShare ? Math.min(least - margin, high - 0.1) : least - margin;
    return [least < 0 ? low : Math.max(0, low), high];
  }

  function draw(title, series) {
    const all = series.flatMap(([, found]) => found);
    const rounds = all.map(([round]) => round), values = all.map(([, value]) => value);
    const first = Math.min(...rounds), last = Math.max(...rounds, first + 1);
    const [low, high] = bounds(values, title !== "Loss" && values.every(value => value >= 0 && value <= 1));
    const x = round => LEFT + (round - first) / (last - first) * (WIDTH - LEFT - RIGHT);
    const y = value => TOP + (high - value) / (high - low || 1) * (HEIGHT - TOP - BOTTOM);
    const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": describe(title, series) });
    const scale = ticks(low, high);
    for (const value of scale.values) {
      svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
      svg.append(element("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(scale.digits)));
    }
    for (const round of wholeTicks(first, last)) {
      svg.append(element("text", { x: x(round), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, String(round)));
    }
    svg.append(element("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "Round"));
    for (const [kind, found] of series) {
      const path = found.map(([round, value]) => `${x(round).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      svg.append(element("polyline", { class: `line ${kind}`, points: path }));
      if (kind !== "worker" && found.length <= 30) {
        for (const [round, value] of found) svg.append(dot(kind, x(round), y(value)));
      }
    }
    return svg;
  }

  function dot(kind, x, y) {
    if (kind === "training") return element("circle", { class: "dot training", cx: x, cy: y, r: 3 });
    return element("rect", { class: `dot ${kind}`, x: x - 3, y: y - 3, width: 6, height: 6 });
  }

  function title(measure) {
    return TITLES[measure] || measure[0].toUpperCase() + measure.slice(1).replaceAll("_", " ");
  }

  // Fills a place with one figure for each measure; returns what kinds of lines there are.
  function show(place, history, workers, measures) {
    const kinds = new Set();
    const figures = [];
    for (const measure of measures) {
      const series = seriesOf(measure, history, workers);
      if (!series.some(([kind]) => kind !== "worker")) continue;
      series.forEach(([kind]) => kinds.add(kind));
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      figure.className = "chart";
      caption.textContent = title(measure);
      figure.append(caption, draw(title(measure), series));
      figures.push(figure);
    }
    place.replaceChildren(...figures);
    return kinds;
  }

  return { show, title };
})();
