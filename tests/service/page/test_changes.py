"""What a user changes through the page, in a real browser: uploads, jobs, titles, deleting, signing in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.store.filters import parse_filter
from service.auth.keys import KEYS_FILE, add_key
from service.ingest.media_store import MediaStore
from service.ingest.sent_transcripts import SentTranscripts
from tests.support.catalog_builders import enqueue
from tests.support.servers.browser import Browser
from tests.support.servers.page_site import HOSTILE, Site, click, text, wait_for_cards
from tests.support.servers.service_fakes import add_video

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    for number in range(3):
        add_video(site.catalog, f"video-{number}", metadata={"year": 2024, "place": {"town": "Ulm"}})
    with site.served():
        yield site


def files(directory: Path, *names: str) -> list[Path]:
    for name in names:
        (directory / name).write_bytes(name.encode())
    return [directory / name for name in names]


def test_uploads_show_how_their_jobs_go(site: Site, browser: Browser, tmp_path: Path) -> None:
    browser.open(site.address)
    wait_for_cards(browser, 3)
    click(browser, "#open-upload")
    browser.choose_files("#files", files(tmp_path, "good.mp4", "bad <b>.mp4"))
    browser.wait_for("document.querySelector('#uploads .row:first-child .state').innerText === 'Queued'")
    job = site.job_queue.lease("worker", 60)
    assert job is not None and job.title == "good"
    browser.wait_for("document.querySelector('#uploads .row:first-child .state').innerText === 'Processing'")
    browser.wait_for("document.querySelector('#num-running').innerText === '2'")
    site.job_queue.finish(job.id, job.video_id)
    browser.wait_for("document.querySelector('#uploads .done')?.innerText.includes('Searchable')")
    browser.wait_for("document.querySelector('#uploads .row:last-child .state').innerText === 'Queued'")
    job = site.job_queue.lease("worker", 60)
    assert job is not None
    site.job_queue.fail(job.id, f"not a video {HOSTILE}")
    browser.wait_for("document.querySelector('#uploads .failed')?.innerText.includes('Not a video <img')")
    browser.wait_for("document.querySelector('#job-list .failed .reason')?.textContent.includes('<img')")
    assert "bad <b>.mp4" in text(browser, "#uploads")
    assert browser.evaluate("document.querySelectorAll('dialog b, dialog img').length") == 0
    # Nothing runs any more, so the list is not asked for again.
    browser.wait_for("document.querySelector('#num-running').hidden")
    browser.evaluate("performance.clearResourceTimings()")
    browser.evaluate("new Promise(resolve => setTimeout(resolve, 2500))")
    assert browser.evaluate("performance.getEntriesByType('resource').length") == 0


def test_transcripts_go_along_with_the_video_whose_name_they_begin_with(
    site: Site, browser: Browser, tmp_path: Path
) -> None:
    chosen = files(tmp_path, "one.mp4", "one.two.mp4", "one.en.srt", "one.two.de.vtt", "three.srt")
    for path in chosen[2:]:
        path.write_text("00:00:01.000 --> 00:00:02.000\nHello\n", encoding="utf-8")
    browser.open(site.address)
    wait_for_cards(browser, 3)
    click(browser, "#open-upload")
    browser.choose_files("#files", chosen)
    browser.wait_for("document.querySelectorAll('#uploads .row').length === 3")
    rows = "[...document.querySelectorAll('#uploads .name')].map(name => name.textContent).sort().join('; ')"
    assert browser.evaluate(rows) == "one.mp4 + one.en.srt; one.two.mp4 + one.two.de.vtt; three.srt"
    assert "choose it together with its video" in text(browser, "#uploads .failed")
    queued = "[...document.querySelectorAll('#uploads .state')].filter(s => s.innerText === 'Queued').length"
    browser.wait_for(f"{queued} === 2")
    sent = SentTranscripts(MediaStore(site.directory / "index"), site.catalog)
    found = {job.title: [one.track for one in sent.of_job(job.id)] for job in site.job_queue.list_jobs()}
    assert found == {"one": ["en"], "one.two": ["de"]}


def test_dropped_files_are_uploaded_and_can_be_cancelled(
    site: Site, browser: Browser, tmp_path: Path
) -> None:
    browser.set_viewport(1200, 900)
    browser.open(site.address)
    wait_for_cards(browser, 3)
    browser.drop_files("main", files(tmp_path, "one.mp4", "two.mp4"))
    browser.wait_for("document.querySelector('#jobs').open")
    waiting = "[...document.querySelectorAll('#uploads .state')].map(state => state.innerText).join()"
    browser.wait_for(f"{waiting} === 'Queued,Queued'")
    cancel = "document.querySelector('#uploads .row:nth-child({}) .row-actions button').click()"
    browser.evaluate(cancel.format(1))
    browser.evaluate(cancel.format(2))
    browser.wait_for("document.querySelectorAll('#uploads .cancelled').length === 2")
    jobs = {(job.title, job.state) for job in site.job_queue.list_jobs(10)}
    assert jobs == {("one", "failed"), ("two", "failed")}


def test_an_upload_that_is_refused_says_why_and_can_be_tried_again(
    site: Site, browser: Browser, tmp_path: Path
) -> None:
    browser.open(site.address)
    wait_for_cards(browser, 3)
    browser.go_offline()
    browser.choose_files("#files", files(tmp_path, "a.mp4"))
    browser.wait_for("document.querySelector('#uploads .failed')?.innerText.includes('was interrupted')")
    browser.go_offline(False)
    click(browser, "#uploads .row-actions button")
    browser.wait_for("document.querySelector('#uploads .state').innerText === 'Queued'")
    job = site.job_queue.lease("worker", 60)
    assert job is not None
    site.job_queue.finish(job.id, job.video_id)
    browser.wait_for("document.querySelector('#uploads .done')")


def test_jobs_are_listed_and_cancelled(site: Site, browser: Browser) -> None:
    for number in range(25):
        enqueue(site.job_queue, None, f"/somewhere/{number}", title=f"{HOSTILE} {number}")
    browser.open(site.address)
    browser.wait_for("document.querySelector('#num-running').innerText === '20'")
    click(browser, "#open-jobs")
    browser.wait_for("document.querySelectorAll('#job-list .row').length === 20")
    click(browser, "#more-jobs")
    browser.wait_for("document.querySelectorAll('#job-list .row').length === 25")
    click(browser, "#job-list .row-actions button")
    browser.wait_for("document.querySelector('#job-list .row').classList.contains('failed')")
    assert "24" in text(browser, "#job-list .name") and site.job_queue.list_jobs(1)[0].state == "failed"
    assert browser.evaluate("document.querySelector('#jobs').contains(document.activeElement)")


def test_a_title_and_metadata_are_edited(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?video=video-1")
    browser.wait_for("document.querySelectorAll('#player-actions button').length === 4")
    browser.evaluate("document.querySelectorAll('#player-actions button')[2].click()")
    browser.wait_for("document.querySelector('#edit').open")
    browser.evaluate("document.querySelector('#edit form').elements.metadata.value = '{not json'")
    browser.evaluate("document.querySelector('#edit form').requestSubmit()")
    browser.wait_for("document.querySelector('#edit [role=alert]').innerText.includes('not JSON')")
    metadata = '{"place": {"town": "Bonn"}, "new": [1, true]}'
    browser.evaluate(f"document.querySelector('#edit form').elements.metadata.value = '{metadata}'")
    browser.evaluate("document.querySelector('#edit form').elements.title.value = 'a <i>new</i> title'")
    browser.evaluate("document.querySelector('#edit form').requestSubmit()")
    browser.wait_for("document.querySelector('#player-title').innerText === 'a <i>new</i> title'")
    record = site.catalog.get_video("video-1")
    assert record.title == "a <i>new</i> title"
    assert record.metadata == {"place": {"town": "Bonn"}, "new": [1, True]}
    assert browser.evaluate("document.querySelectorAll('.card .title')[1].innerText") == record.title


def test_a_video_is_deleted_only_when_confirmed(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?video=video-1")
    browser.wait_for("document.querySelectorAll('#player-actions button').length === 4")
    click(browser, "#player-actions .risky")
    browser.wait_for("document.querySelector('#confirm').open")
    click(browser, "#confirm button[value='']")
    browser.wait_for("!document.querySelector('#confirm').open")
    assert site.catalog.num_videos == 3
    click(browser, "#player-actions .risky")
    click(browser, "#confirm .danger")
    wait_for_cards(browser, 2)
    assert [record.id for record in site.catalog.list_videos(9)] == ["video-2", "video-0"]
    browser.wait_for("document.activeElement.closest('.card')?.dataset.id === 'video-0'")


def test_metadata_of_a_video_becomes_a_filter(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x&video=video-1")
    browser.wait_for("document.querySelector('#player-details .facts-list .link')")
    click(browser, "#player-details .facts-list .link")
    browser.wait_for("document.querySelector('.chip')?.innerText.includes('year = 2024')")
    browser.wait_for("!document.querySelector('#player').open")
    browser.wait_for("document.querySelector('#results').getAttribute('aria-busy') !== 'true'")
    assert site.searcher.filters[-1] == parse_filter({"metadata.year": {"in": ["2024", 2024]}})


def test_who_has_a_key_signs_in_and_out(site: Site, browser: Browser) -> None:
    secret = add_key(site.directory / "index" / KEYS_FILE, "reader", "read")
    browser.open(f"{site.address}/?q=x")
    browser.wait_for("document.querySelector('#sign-in').open")
    assert browser.evaluate("document.activeElement.name") == "key"
    browser.write("wrong")
    browser.press("Enter")
    browser.wait_for("document.querySelector('#sign-in [role=alert]').innerText.includes('key is not valid')")
    browser.evaluate("document.querySelector('#sign-in form').elements.key.value = ''")
    browser.write(secret)
    browser.press("Enter")
    wait_for_cards(browser, 3)
    assert browser.evaluate(
        "document.querySelector('#open-upload').hidden"
    )  # The key does not allow changes.
    browser.set_viewport(390, 844)
    top = "document.querySelector('#{}').getBoundingClientRect().{}"
    assert browser.evaluate(
        f"{top.format('log-out', 'top')} < {top.format('home', 'bottom')}"
    )  # On one line.
    click(browser, ".picture")
    browser.wait_for("document.querySelector('#player-details dl')")
    assert browser.evaluate("document.querySelectorAll('#player-actions button').length") == 2
    assert secret not in browser.evaluate("document.documentElement.outerHTML + document.cookie")
    browser.evaluate("document.querySelector('#player').close()")
    browser.wait_for("location.search === '?q=x'")
    click(browser, "#log-out")
    browser.wait_for("document.querySelector('#sign-in').open")
