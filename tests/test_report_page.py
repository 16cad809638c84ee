"""report.html, in a real browser: it shows what the files say, hears pointer and keys, and asks nothing of a network."""

import html.parser
import itertools
import json
import re
import shutil
import struct
import zlib

import pytest

import manual_backprop as mb
from made_runs import event, made_rows, whole_run, write_run
from manual_backprop.training.history import number, read
from manual_backprop.training.report import write_report
from manual_backprop.training.series import CELLS, ROWS, curves

OPTIONS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
OPTIONS = [*OPTIONS.split(), "--disable-component-update", "--disable-sync"]
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


def png(width=3, height=2) -> bytes:
    part = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    lines = zlib.compress((b"\0" + b"\x80" * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", lines) + part(b"IEND", b"")


class Tags(html.parser.HTMLParser):
    """The elements of a page, its text, and the data in it."""

    def __init__(self, text):
        super().__init__()
        self.found, self.said, self.data = [], [], ""
        self.feed(text)
        self.close()
        self.data = json.loads(self.data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.found[-1] if self.found else ("", {})
        if tag == "script" and attributes.get("id") == "data":
            self.data += data
        elif tag not in ("script", "style"):
            self.said.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.found)

    @property
    def text(self):
        return " ".join(" ".join(self.said).split())


def tags(folder) -> Tags:
    return Tags(write_report(folder).read_text("utf-8"))


# ── without a browser ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_says_what_the_files_say(tmp_path):
    folder = whole_run(tmp_path / "a run")
    for name in ("curves", "sensitivities", "own_picture"):
        (folder / f"{name}.png").write_bytes(png())
    page, rows = tags(folder), made_rows()
    for said in (
        "Finished all 200 steps, after 77 s of work in 3 sessions.",
        f"cost {number(rows[-1]['cost'])}",
        f"cost, held out {number(rows[-1]['held_out_cost'])}",
        "tokens a second 1,090",
        "utilisation (MFU) 40 %",
        "killed without a last word, after step 90",
        "warning checkpoint of step 80 is not used: <b>a file</b> is damaged",
        "resumed processes 1",
        "stopped 120 SIGTERM",
        "saved 2 times steps 60 … 80, 0.5 s at most",
        "60 2026-11-22 20:00:11 0.25 s 5 kB there",
        "120 5 kB missing: it cannot be used",
        "Also there, and not used: 80.refused.",
        "optimizer.learning_rate 0.003",
        "device NVIDIA H100",
        "versions.jax 0.10.2",
        f"sha256 {'ab' * 32}",
        f"finished 200 sha256 {'ab' * 6}…",
        "step 100 first <i>words</i>",
        "Own picture",
    ):
        assert said in page.text, said
    assert "could be read" not in page.text
    pictures = [attributes for tag, attributes in page.found if tag == "img"]
    assert [(p["width"], p["height"]) for p in pictures] == [("3", "2")] * 3 and all(p["alt"] for p in pictures)
    assert page.data["tables"]["rows"]["cost"] == [float(f"{row['cost']:.9g}") for row in rows]
    assert page.data["charts"][0]["level"] == {"name": "entropy of the source", "value": 1.0626}


def test_what_a_run_wrote_is_text_and_never_markup(tmp_path):
    evil = "</script></pre><img src=x onerror=hacked=1>&amp;\u2028\ud800"
    folder = tmp_path / "x" / "<b>run"
    norms = {evil: 1.0}
    write_run(
        folder,
        [{"step": 1, "cost": 1.0, evil: 2.0, "layer_norms": norms, "sample": evil}],
        [event(0, "started", 0, **{"why": evil, evil: evil}), event(1, evil), event(2, "failed", 0, why=evil)],
        config={evil: evil},
        environment={"experiment": evil},
        result={evil: [evil]},
    )
    page, plain = tags(folder), tags(whole_run(tmp_path / "plain"))
    assert page.count("img") == page.count("b") - plain.count("b") == 0
    assert page.count("script") == plain.count("script") == 2
    assert page.text.count("onerror=hacked") >= 9
    assert page.data["layers"]["names"] == [evil]


def test_the_page_of_damaged_files_says_which(tmp_path):
    folder = whole_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 205, "cost": NaN, "gradient_norm": -Infinity}\nno json\n{"step": 210, "co')
    (folder / "result.json").write_text("{")
    (folder / "mistakes.png").write_bytes(png()[:-9])
    page = tags(folder)
    assert "result.json is damaged" in page.text
    assert "metrics.jsonl: its last line is cut short" in page.text
    assert "metrics.jsonl: line 22 could not be read" in page.text
    assert "mistakes.png is no whole PNG" in page.text and page.count("img") == 0
    assert page.data["tables"]["rows"]["cost"][-1] == "NaN"
    assert page.data["tables"]["rows"]["gradient_norm"][-1] == "−∞"


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: write_run(folder),
        lambda folder: write_run(folder, [{"step": 5}]),
        lambda folder: write_run(folder, [{"step": 5, "cost": 1.5}]),
        lambda folder: write_run(folder, [{"step": 5, "cost": None, "layer_norms": {"a": None}}]),
        lambda folder: write_run(folder, [{"step": 5, "cost": "much", "layer_norms": [1], "block_norms": 3}]),
        lambda folder: write_run(folder, [{"step": 1, "reward": 1.0, "layer_norms": {"a": 0.0, "b": float("nan")}}]),
        lambda folder: write_run(folder, [], [{"event": "speed"}, {"event": "saved", "time": "noon", "step": -1}]),
        lambda folder: write_run(folder, made_rows(20), [event(0, "resumed")], config={"steps": "many"}),
    ],
)
def test_little_is_enough_for_a_page(tmp_path, make):
    page = tags(make(tmp_path / "run"))
    assert page.count("h1") == 1 and "could be read" not in page.text and "Unfinished" in page.text


def test_a_report_can_be_made_again(tmp_path):
    folder = whole_run(tmp_path / "run")
    first = write_report(folder).read_text()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 210, "cost": 123.0}) + "\n")
    assert '"cost":[' in first and write_report(folder).read_text() != first
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    folder = whole_run(tmp_path / "run")
    first = write_report(folder).read_text()

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    for method in ("write_text", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pathlib.Path.{method}", full)
            with pytest.raises(mb.InputError, match=r"report\.html cannot be written: No space left on device"):
                write_report(folder)
    assert (folder / "report.html").read_text() == first
    assert not [path for path in folder.iterdir() if "partial" in path.name]


@pytest.mark.parametrize(("place", "line"), [("none", "there is no such folder"), (".", "is not a run's folder")])
def test_a_folder_that_is_no_run(tmp_path, place, line):
    with pytest.raises(mb.InputError, match=line):
        write_report(tmp_path / place)


def test_long_runs_are_thinned_evenly(tmp_path):
    rows = [{"step": i, "cost": 1.0, "layer_norms": {"a": [1.0] * 100}} for i in range(1, 2 * ROWS + 3)]
    data = curves(read(write_run(tmp_path / "run", rows)))
    steps = data["tables"]["rows"]["step"]
    assert len(steps) <= ROWS and steps[-1] == rows[-1]["step"] and {b - a for a, b in itertools.pairwise(steps)} == {3}
    assert data["left_out"] == len(rows) - len(steps)
    assert len(data["layers"]["names"]) * len(data["layers"]["steps"]) <= CELLS
    assert len(write_report(tmp_path / "run").read_bytes()) < 2e6


def test_layers_come_in_order_and_with_their_place_in_the_stack(tmp_path):
    rows = [
        {"step": 1, "layer_norms": {"in": 1.0, "block": None, "out": 3.0}},  # a skipped step has no norms
        {"step": 2, "layer_norms": {"in": 1.5, "block": [[0.5, 0.25], [0.125, 2.0]], "out": None}},
    ]
    layers = curves(read(write_run(tmp_path / "run", rows)))["layers"]
    assert layers["names"] == ["in", "out", "block 0.0", "block 0.1", "block 1.0", "block 1.1"]
    assert layers["values"] == [[1.0, 1.5], [3.0, None], [None, 0.5], [None, 0.25], [None, 0.125], [None, 2.0]]


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("there is no browser: apt-get install chromium, or another that has the command chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="pip install 'manual_backprop[test]'")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture
def show(browser, tmp_path):
    """`show(folder)`: its report in a new window. At the end: nothing on the console, nothing asked of anyone."""
    opened, complaints, requests = [], [], []

    def open_page(folder, viewport=WIDE, **options):
        context = browser.new_context(viewport=viewport, **options)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(write_report(folder).as_uri())
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert not complaints
    assert requests and all(url.startswith(("file://", "data:")) for url in requests)
    assert len([url for url in requests if url.startswith("file://")]) == len(opened)


def plot(page, title):
    return page.locator("figure", has=page.get_by_role("heading", name=title, exact=True)).locator(".plot")


def readout(page, title):
    text = (
        page.locator("figure", has=page.get_by_role("heading", name=title, exact=True)).locator(".readout").inner_text()
    )
    return " ".join(text.split())


def test_the_curves_are_drawn_and_read_off_with_the_pointer(show, tmp_path):
    page, rows = show(whole_run(tmp_path / "run")), made_rows()
    last, gradient = rows[-1], "Length of the gradient, |∇C|"
    at_end = (
        f"step 200 training {number(last['cost'])} held out {number(last['held_out_cost'])} entropy of the source 1.063"
    )
    assert readout(page, "Cost") == at_end
    box = plot(page, "Cost").bounding_box()
    left, right = 52, box["width"] - 8  # of the curve, which is drawn from step 0 to step 200
    page.mouse.move(box["x"] + left + (right - left) * 103 / 200, box["y"] + 50)
    row, before = rows[9], rows[9]
    assert row["step"] == 100
    assert readout(page, "Cost") == (
        f"step 100 training {number(row['cost'])} held out {number(before['held_out_cost'])} entropy of the source 1.063"
    )
    assert readout(page, gradient) == f"step 100 {number(row['gradient_norm'])}"  # one cursor for all
    assert plot(page, "Cost").locator("circle.dot").count() == 2
    page.mouse.move(box["x"] + left + (right - left) * 111 / 200, box["y"] + 50)
    assert f"held out {number(before['held_out_cost'])} at 100" in readout(page, "Cost")  # not measured at 110
    page.mouse.move(5, 5)
    assert readout(page, "Cost") == at_end
    assert plot(page, "Cost").locator("svg circle.dot").count() == 0
    assert readout(page, "Throughput, tokens a second") == "step 200 1,200"


def test_where_the_curve_is_drawn_is_where_the_number_is(show, tmp_path):
    """A straight line of cost is a straight line on the page; on the logarithmic scale an exponential is one."""
    rows = [{"step": step, "cost": 10.0 - step / 10, "decay": 2.0 ** -(step / 10)} for step in range(0, 81, 10)]
    page = show(write_run(tmp_path / "run", rows))

    def bends(title):
        path = plot(page, title).locator("path.line").first.get_attribute("d")
        points = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
        assert len(points) == 9 and points[0][0] == 52 and points == sorted(points)
        return max(abs(a[1] - 2 * b[1] + c[1]) for a, b, c in zip(points, points[1:], points[2:], strict=False))

    assert bends("Cost") < 0.25 and bends("Decay") < 0.25  # the second spans 1 to 256: its scale is logarithmic
    choice = page.get_by_role("group", name="Scale of Decay")
    assert choice.get_by_role("button", pressed=True).inner_text() == "log"
    choice.get_by_role("button", name="linear").click()
    assert choice.get_by_role("button", pressed=True).inner_text() == "linear"
    assert bends("Decay") > 20


def test_the_curves_are_read_off_with_the_keyboard(show, tmp_path):
    page, rows = show(whole_run(tmp_path / "run")), made_rows()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Cost":
            break
    slider = page.get_by_role("slider", name="Cost", exact=True)
    assert slider.evaluate("e => e === document.activeElement")
    said = lambda: slider.get_attribute("aria-valuetext")
    for key, step in (
        ("Home", 10),
        ("ArrowRight", 20),
        ("PageUp", 40),
        ("ArrowLeft", 30),
        ("End", 200),
        ("PageDown", 180),
        ("Home", 10),
        ("ArrowLeft", 10),
        ("End", 200),
        ("PageUp", 200),
    ):
        page.keyboard.press(key)
        assert said().startswith(f"step {step}: training {number(rows[step // 10 - 1]['cost'])}"), key
        assert slider.get_attribute("aria-valuenow") == str(step)
        assert readout(page, "Cost").startswith(f"step {step} training")
    assert slider.locator("line.cursor").count() == 1
    page.keyboard.press("Escape")
    assert slider.locator("line.cursor").count() == 0


def test_a_closer_look_and_back(show, tmp_path):
    page = show(whole_run(tmp_path / "run"))
    steps = lambda: [
        int(text)
        for text in plot(page, "Cost").locator("svg text").all_text_contents()
        if text.isdigit() and int(text) > 6
    ]
    whole = page.get_by_role("button", name="Show all steps")
    assert max(steps()) == 200 and not whole.is_visible()
    box = plot(page, "Cost").bounding_box()
    place = lambda step: box["x"] + 52 + (box["width"] - 60) * step / 200
    page.mouse.move(place(50), box["y"] + 60)
    page.mouse.down()
    page.mouse.move(place(100), box["y"] + 60, steps=3)
    page.mouse.up()
    assert 50 <= min(steps()) <= max(steps()) <= 100
    whole.click()
    assert max(steps()) == 200 and not whole.is_visible()
    plot(page, "Cost").focus()
    page.keyboard.press("Home")
    page.keyboard.press("+")
    assert max(steps()) < 100 and whole.is_visible()
    page.keyboard.press("0")
    assert max(steps()) == 200


def test_smoothing_changes_the_line_and_not_the_numbers(show, tmp_path):
    """And it keeps a straight line straight: it does not lag."""
    rows = [{"step": step, "cost": 50 + 10 * (step % 20 > 5), "slope": 1.0 * step} for step in range(10, 1001, 10)]
    page = show(write_run(tmp_path / "run", rows))
    path = lambda title: plot(page, title).locator("path.line:not(.raw)").get_attribute("d")
    height = lambda title: [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path(title))]
    before, straight, shown = height("Cost"), path("Slope"), readout(page, "Cost")
    page.get_by_label("Smoothing").focus()
    for _ in range(5):
        page.keyboard.press("PageUp")
    assert re.fullmatch(r"over ± \d+ steps", page.locator("output").inner_text())
    after = height("Cost")
    spread = lambda values: max(values) - min(values)
    assert spread(after[20:80]) < 0.2 * spread(before)
    assert plot(page, "Cost").locator("path.raw").count() == 1
    assert path("Slope") == straight
    assert readout(page, "Cost") == shown
    page.keyboard.press("Home")
    assert height("Cost") == before and plot(page, "Cost").locator("path.raw").count() == 0


LOOK = """(canvas, [x, y]) => {
  const one = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  one.drawImage(canvas, -x, -y);
  const [r, g, b] = one.getImageData(0, 0, 1, 1).data;
  return r + g + b;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_flow_of_gradients(show, tmp_path, scheme):
    """Each layer's row, each step's column; the larger the further from the paper's colour."""
    rows = [
        {"step": step, "layer_norms": {"in": 1.0, "block": [0.1, 0.01], "out": step / 100}}
        for step in (25, 50, 75, 100)
    ]
    page = show(write_run(tmp_path / "run", rows), color_scheme=scheme)
    flow = page.get_by_role("slider", name="By layer and step")
    size = page.locator("canvas").evaluate("c => [c.width, c.height]")
    look = lambda row, at: page.locator("canvas").evaluate(LOOK, [int(at * size[0]), int((row + 0.5) * size[1] / 4)])
    light = [look(row, 0.9) for row in (0, 1, 2, 3)]
    order = sorted(range(4), key=lambda row: light[row], reverse=scheme == "dark")
    assert light[0] == light[3] and order[2:] == [1, 2]  # 1 = 1, then 0.1, then 0.01
    assert len({look(3, at) for at in (0.1, 0.4, 0.6, 0.9)}) == 4 and len({look(0, at) for at in (0.1, 0.9)}) == 1
    assert [t for t in flow.locator("svg text").evaluate_all("all => all.map(t => t.firstChild.data)") if not t.isdigit()][:3] == [
        "in", "block 0", "out",
    ]  # fmt: skip

    flow.focus()
    for key in ("Home", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert readout(page, "By layer and step").startswith("step 50 block 1 0.01")
    assert flow.get_attribute("aria-valuetext") == "step 50: block 1 0.01, drawn below"
    assert readout(page, "Chosen layers") == "step 50 in 1 block 1 0.01 out 0.5"
    page.keyboard.press("Enter")
    assert readout(page, "Chosen layers") == "step 50 in 1 out 0.5"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert readout(page, "Chosen layers") == "step 50 in 1 out 0.5 block 0 0.1"
    box = flow.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 20, box["y"] + 14)
    assert readout(page, "Chosen layers") == "step 100 out 1 block 0 0.1"


VALUES = [
    0.0,
    -0.5,
    1e-3,
    9.9996e-4,
    123.456,
    999.96,
    1000.4,
    54321.6,
    9.99e6,
    1.5e7,
    -2.5e-9,
    float("nan"),
    float("inf"),
    7,
    12345678,
]


def test_the_table_has_every_number_as_the_library_writes_it(show, tmp_path):
    rows = [
        {"step": step, "cost": value} | ({"accuracy": 0.25} if step % 2 else {}) for step, value in enumerate(VALUES, 1)
    ]
    page = show(write_run(tmp_path / "run", rows))
    page.get_by_text("The numbers as a table").click()
    cells = page.locator("details.values tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(c => c.textContent))"
    )
    assert cells[0] == ["step", "cost", "accuracy"]
    assert cells[1:] == [[number(row["step"]), number(row["cost"]), number(row.get("accuracy"))] for row in rows]


def test_steps_that_are_not_finite_are_marked(show, tmp_path):
    rows = [{"step": step, "cost": float("nan") if step == 30 else 1.0 / step} for step in range(10, 60, 10)]
    page = show(write_run(tmp_path / "run", rows))
    assert plot(page, "Cost").locator("path.bad").count() == 1
    path = plot(page, "Cost").locator("path.line").get_attribute("d")
    assert path.count("M") == 2 and path.count("L") == 2
    plot(page, "Cost").focus()
    for key in ("Home", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert readout(page, "Cost") == "step 30 NaN"


def test_a_zero_has_no_place_on_a_logarithmic_scale(show, tmp_path):
    rows = [{"step": step, "cost": 0.0 if step in (30, 40) else 10.0**-step} for step in range(10, 80, 10)]
    page = show(write_run(tmp_path / "run", rows))
    page.get_by_role("group", name="Scale of Cost").get_by_role("button", name="log").click()
    path = plot(page, "Cost").locator("path.line").get_attribute("d")
    assert path.count("M") == 2 and path.count("L") == 3
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    assert heights == sorted(heights) and len(heights) == 5


def test_hostile_names_stay_text_in_the_script_too(show, tmp_path):
    evil = "</script><img src=x onerror=hacked=1>"
    rows = [{"step": step, evil: 1.0, "layer_norms": {evil: 1.0}} for step in (1, 2)]
    page = show(write_run(tmp_path / "run", rows))
    page.get_by_text("The numbers as a table").click()
    assert page.evaluate("typeof hacked") == "undefined" and page.locator("img").count() == 0
    assert evil in readout(page, "By layer and step")


@pytest.mark.parametrize("make", [whole_run, write_run, lambda folder: write_run(folder, made_rows(10))])
def test_a_phone_shows_all_without_scrolling_sideways(show, tmp_path, make):
    folder = make(tmp_path / ("long" * 20))
    (folder / "curves.png").write_bytes(png(1400, 300))
    page = show(folder, PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate(
        "[...document.querySelectorAll('figure, img, section')].every(e => e.getBoundingClientRect().right <= innerWidth)"
    )
    page.set_viewport_size({"width": 844, "height": 390})  # it is turned
    assert page.evaluate("document.documentElement.scrollWidth") == 844


def test_touching_a_curve_reads_it_off(show, tmp_path):
    page = show(whole_run(tmp_path / "run"), PHONE, has_touch=True, is_mobile=True)
    plot(page, "Cost").scroll_into_view_if_needed()
    box = plot(page, "Cost").bounding_box()
    page.touchscreen.tap(box["x"] + 52 + (box["width"] - 60) / 2, box["y"] + 40)
    assert readout(page, "Cost").startswith("step 100 ")


CONTRAST = """() => {
  const light = (css) => {
    const [r, g, b] = css.match(/[\\d.]+/g).map(Number).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.documentElement).backgroundColor);
  const ratio = (css) => { const [a, b] = [light(css), paper].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); };
  const seen = {};
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    if (element.closest("canvas, noscript") || !element.getClientRects().length) continue;
    if ([...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) seen[`text ${element.tagName}.${element.className.baseVal ?? element.className}`] = [ratio(svg ? style.fill : style.color), 4.5];
    if (svg && element.classList.contains("line") && !element.classList.contains("raw")) seen[`line ${element.className.baseVal}`] = [ratio(style.stroke), 3];
  }
  return seen;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(show, tmp_path, scheme):
    page = show(whole_run(tmp_path / "run"), color_scheme=scheme)
    page.get_by_text("The numbers as a table").click()
    for name in ("By layer and step",):  # all six colours of layers
        plot(page, name).focus()
        for _ in range(3):
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Enter")
    found = page.evaluate(CONTRAST)
    assert len(found) > 25 and any("c-main" in name for name in found)
    assert {name: ratio for name, (ratio, wanted) in found.items() if ratio < wanted} == {}
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(paper) < 120) == (scheme == "dark")


def test_its_structure_can_be_heard(show, tmp_path):
    page = show(whole_run(tmp_path / "run"))
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    names = page.locator("[role=slider], [role=img], [role=group], [role=region], nav").evaluate_all(
        "all => all.map(e => e.ariaLabel)"
    )
    assert len(names) > 10 and all(names)
    assert page.locator("input").evaluate_all("all => all.every(e => e.labels.length)")
    assert page.evaluate("document.documentElement.lang") == "en"
    links = page.locator("nav a").evaluate_all("all => all.map(a => document.querySelector(a.hash) !== null)")
    assert len(links) == 8 and all(links)
    assert page.locator("th:not([scope])").count() == 0


def test_on_paper_it_is_black_on_white_and_without_what_only_a_screen_has(show, tmp_path):
    page = show(whole_run(tmp_path / "run"), color_scheme="dark")
    screen = page.locator("canvas").evaluate("c => c.toDataURL()")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    for hidden in ("nav", ".controls", ".scale", "details", ".screen"):
        assert not page.locator(hidden).first.is_visible(), hidden
    assert page.locator("canvas").evaluate("c => c.toDataURL()") != screen  # drawn anew, for white paper
    assert plot(page, "Cost").locator("path.line").first.is_visible()


def test_without_scripts_it_says_so_and_shows_the_rest(show, tmp_path):
    page = show(whole_run(tmp_path / "run"), java_script_enabled=False)
    assert page.locator("noscript p").is_visible()
    assert page.get_by_role("heading", name="What happened").is_visible()
