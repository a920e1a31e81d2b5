"""The page of examples/space in Chromium: it works, requests nothing from other servers, and logs nothing.

The tests leave screenshots in test-output/, to be looked at.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from browser import Browser
from drawn_digits import DRAWN, SPACE, Drawn
from safetensors.torch import load_file
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_space_asking import subsets_pipeline

from pdiff_hub import PDiffPipeline

import opening  # isort: skip
import sampling  # isort: skip

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "pipelines" / "digits-mlp3"
PICTURES = ROOT / "test-output"


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running page. It depends on `browser`, so nothing is started where there is no browser."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("space")
    environment = {
        **os.environ,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "no_proxy": "127.0.0.1",
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    # The second pipeline can be asked for networks.
    pipelines = [os.path.relpath(PIPELINE, folder), str(subsets_pipeline(folder / "small-family"))]
    options = ["--host", "127.0.0.1", "--port", str(port), "--pipeline", *pipelines]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(SPACE / "app.py"), *options],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    found = f"http://127.0.0.1:{port}/"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        until = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            try:
                opener.open(found, timeout=10).close()
                break
            except OSError:
                time.sleep(0.2)
        yield found
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait(what: str, found: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)


def count(browser: Browser, selector: str) -> int:
    return len(browser.driver.find_elements(By.CSS_SELECTOR, selector))


def text(browser: Browser, selector: str) -> str:
    return browser.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)


def show(browser: Browser, tab: str) -> None:
    tabs = browser.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
    next(each for each in tabs if each.text == tab).click()


def settled(browser: Browser) -> bool:
    """Whether no progress text is visible, so that the page is not working on anything that it shows."""
    return browser.evaluate("[...document.querySelectorAll('.progress-text')].every(each => !each.offsetParent)")


def click(browser: Browser, selector: str, which: int = 0) -> None:
    found = browser.driver.find_elements(By.CSS_SELECTOR, selector)[which]
    browser.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()


def choose(browser: Browser, name: str) -> None:
    """Choose a pipeline that is in the list."""
    click(browser, "#local input")
    browser.driver.switch_to.active_element.send_keys(Keys.CONTROL, "a")
    browser.driver.switch_to.active_element.send_keys(name)
    options = "[...document.querySelectorAll('ul[role=listbox] li')].map(each => each.textContent)"
    wait("the only name in the list", lambda: [name in each for each in browser.evaluate(options)] == [True])
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)


def tabs(browser: Browser) -> list[str]:
    # In one piece, because Gradio may replace the buttons in between.
    return browser.evaluate("[...document.querySelectorAll('button[role=tab]')].map(each => each.innerText)")


def draw(browser: Browser, drawn: Drawn, on: str = "pad") -> None:
    pad = browser.driver.find_element(By.CSS_SELECTOR, f"#{on} canvas")
    browser.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", pad)
    side = pad.size["width"]
    for stroke in drawn:
        at = [(int((x / 100 - 0.5) * side), int((y / 100 - 0.5) * side)) for x, y in stroke]
        actions = ActionChains(browser.driver, duration=20).move_to_element_with_offset(pad, *at[0]).click_and_hold()
        for point in at[1:]:
            actions.move_to_element_with_offset(pad, *point)
        actions.release().perform()


def test_the_page(browser: Browser, address: str, tmp_path: Path) -> None:
    """Does all that a visitor can do, in one test, because the page takes a while to load."""
    PICTURES.mkdir(exist_ok=True)
    browser.open(address)
    wait("the first sample", lambda: count(browser, "#networks tbody tr") == 20)
    assert "0 of 200 generated networks are copies (of 20 fresh" in text(browser, "#pipeline") and "8,970" in text(
        browser, "#pipeline"
    )
    wait("the page to settle", lambda: settled(browser))
    assert browser.overflow() == 0
    browser.screenshot(PICTURES / "space.png")

    number, seed = (
        browser.driver.find_element(By.CSS_SELECTOR, f"#{name} input[type=number]") for name in ("number", "seed")
    )
    for field, value in ((number, "5"), (seed, "3")):
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(value, Keys.TAB)
    browser.driver.find_element(By.ID, "sample").click()
    wait("five networks", lambda: count(browser, "#networks tbody tr") == 5)
    drawn = sampling.sample(opening.open_pipeline(PIPELINE, "digits-mlp3"), 5, 3, 50)
    cells = [
        tuple(cell.text for cell in row.find_elements(By.TAG_NAME, "td"))
        for row in browser.driver.find_elements(By.CSS_SELECTOR, "#networks tbody tr")
    ]
    expected = sampling.table_rows(drawn)
    # The page runs in another process, which may sum numbers in another order. So its networks are the same up to
    # rounding, and a few of their answers may differ.
    assert [float(each[1]) for each in cells] == pytest.approx([float(each[1]) for each in expected], abs=0.3)
    assert [each[0] for each in cells] == [each[0] for each in expected]

    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.driver.find_element(By.ID, "download").click()
    wait("the download", lambda: any(tmp_path.glob("*.safetensors")))
    (file,) = tmp_path.glob("*.safetensors")
    pipe = PDiffPipeline.from_pretrained(PIPELINE)
    state = load_file(file)
    pipe.build_network(state)  # loads with strict=True
    assert file.name == "digits-mlp3-n5-seed3-steps50-network00.safetensors"
    torch.testing.assert_close(state, pipe.autoencoder.state_dicts(drawn.params_NP)[0])

    show(browser, "Draw")
    draw(browser, DRAWN[3])
    wait("the answer", lambda: count(browser, "#answer .pd-digit") == 1)
    assert text(browser, "#answer .pd-digit") == "3" and count(browser, "#answer .pd-each li") == 5
    assert re.search(r"\d of 5 networks say 3", text(browser, "#answer"))
    wait("the page to settle", lambda: settled(browser))
    browser.screenshot(PICTURES / "space-draw.png")
    browser.driver.find_element(By.ID, "clear").click()
    wait("the pad to be clear", lambda: count(browser, "#answer .pd-digit") == 0)
    draw(browser, DRAWN[0])
    wait("another answer", lambda: count(browser, "#answer .pd-digit") == 1)
    assert text(browser, "#answer .pd-digit") == "0"

    show(browser, "Copied?")
    wait("two pictures", lambda: count(browser, ".pd-picture img") >= 2 and settled(browser))
    assert "on this sample of 5" in text(browser, "#sample-verdict")
    browser.screenshot(PICTURES / "space-copied.png")
    show(browser, "Path")
    wait("four pictures", lambda: count(browser, ".pd-picture img") == 4 and settled(browser))
    browser.screenshot(PICTURES / "space-path.png")

    hub = browser.driver.find_element(By.CSS_SELECTOR, "#hub textarea, #hub input")
    hub.send_keys("../secrets", Keys.ENTER)
    wait("the error", lambda: "is no Hub id; expected owner/name" in browser.evaluate("document.body.innerText"))
    assert browser.messages() == []  # Gradio itself says nothing either
    assert [each for each in browser.requests() if not each.startswith(address)] == []


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_on_a_phone(browser: Browser, address: str, dark: bool) -> None:
    browser.open(address, width=390, dark=dark)
    wait("the first sample", lambda: count(browser, "#networks tbody tr") == 20)
    for tab in ("Draw", "Numbers", "Sample"):
        show(browser, tab)
        wait("the page to settle", lambda: settled(browser))
        assert browser.overflow() == 0, tab
    assert browser.messages() == []
    browser.screenshot(PICTURES / f"space-phone{'-dark' if dark else ''}.png")


def label(browser: Browser, first: int, last: int) -> None:
    """Clicks pictures of the grid. The grid draws itself anew at each click, and a script does not wait for it."""
    for number in range(first, last):
        browser.evaluate(f"document.querySelectorAll('#fit-grid .pd-tile')[{number}].click()")


def open_subsets(browser: Browser) -> None:
    """Opens the pipeline that can be asked for networks, and asks for five."""
    choose(browser, "small-family")
    wait("the tab Ask", lambda: tabs(browser) == ["Ask", "Fit", "Numbers"] and count(browser, "#ask-go") == 1)
    click(browser, "#ask-go")
    wait("the error", lambda: "Nothing is asked for yet; tick at least one" in text(browser, "#ask-summary"))
    for digit in (1, 4):
        click(browser, "#ask-ticks input", digit)
    click(browser, "#ask-go")
    wait("five networks", lambda: "Is it one of 1, 4?" in text(browser, "#ask-summary"))
    assert "It was trained on" in text(browser, "#ask-summary") and count(browser, "#ask-summary .pd-class") == 10


def test_ask_and_fit(browser: Browser, address: str) -> None:
    """Tabs come and go with the pipeline; networks are asked for and fitted; what is wrong is said in the page."""
    browser.open(address)
    wait("the first sample", lambda: count(browser, "#networks tbody tr") == 20)
    assert tabs(browser) == ["Sample", "Copied?", "Path", "Draw", "Fit", "Numbers"]
    open_subsets(browser)
    draw(browser, DRAWN[4], on="ask-pad")
    wait("the answers to the drawing", lambda: count(browser, "#ask-answer .pd-five") == 5)
    assert re.search(r"(All 5|[345] of 5) say (yes|no)", text(browser, "#ask-answer"))
    wait("the page to settle", lambda: settled(browser))
    browser.screenshot(PICTURES / "space-ask.png")
    click(browser, "#ask-clear")
    wait("no answer", lambda: count(browser, "#ask-answer .pd-five") == 0)

    show(browser, "Fit")
    wait("the pictures", lambda: count(browser, "#fit-grid .pd-tile") == 30)
    label(browser, 0, 10)
    click(browser, "#fit-go")
    wait("the error", lambda: "Every label is 'yes'" in text(browser, "#fit-summary"))
    click(browser, "#fit-add")
    wait("another error", lambda: "Nothing is drawn yet" in text(browser, "#fit-answer"))
    click(browser, "#fit-grid .pd-brush")
    label(browser, 10, 19)
    draw(browser, DRAWN[1], on="fit-pad")
    click(browser, "#fit-add")
    wait("the drawing among the pictures", lambda: count(browser, "#fit-grid .pd-tile") == 31)
    assert text(browser, "#fit-grid .pd-count") == "20 labelled: 10 no, 10 yes."
    click(browser, "#fit-go")
    wait("networks that fit", lambda: "of 20 labels" in text(browser, "#fit-summary"))
    draw(browser, DRAWN[7], on="fit-pad")
    wait("their answers", lambda: count(browser, "#fit-answer .pd-five") == 5)
    wait("the page to settle", lambda: settled(browser))
    browser.screenshot(PICTURES / "space-fit.png")

    choose(browser, "digits-mlp3")
    wait("the tabs of samples", lambda: tabs(browser) == ["Sample", "Copied?", "Path", "Draw", "Fit", "Numbers"])
    assert browser.overflow() == 0 and browser.messages() == []
    assert [each for each in browser.requests() if not each.startswith(address)] == []


def test_ask_and_fit_on_a_phone(browser: Browser, address: str) -> None:
    browser.open(address, width=390, dark=True)
    wait("the first sample", lambda: count(browser, "#networks tbody tr") == 20)
    open_subsets(browser)
    click(browser, "#ask-test")
    wait("the answers to a test picture", lambda: "It is of class" in text(browser, "#ask-answer"))
    wait("the page to settle", lambda: settled(browser))
    assert browser.overflow() == 0
    browser.screenshot(PICTURES / "space-ask-phone.png")
    show(browser, "Fit")
    wait("the pictures", lambda: count(browser, "#fit-grid .pd-tile") == 30)
    label(browser, 0, 8)
    wait("the count", lambda: "8 yes" in text(browser, "#fit-grid .pd-count"))
    assert browser.overflow() == 0 and browser.messages() == []
    browser.screenshot(PICTURES / "space-fit-phone.png")
