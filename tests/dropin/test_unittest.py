"""The same in the style of `unittest`, on the loop that it makes."""

import time
import unittest
from unittest.mock import AsyncMock, MagicMock, Mock, patch

import pytest
from tests.dropin.caller import InsertBatch, Manager, Result, mock_manager, mock_target, text_of, until, until_processed, user


class WithModule:
    """The module under test, as a fixture gives it."""

    @pytest.fixture(autouse=True)
    def _module(self, dropin):
        self.dropin = dropin


class TestQuota(WithModule, unittest.TestCase):
    """`BackendQuota`."""

    def test_limits(self):
        quota = self.dropin.BackendQuota("snscrape", requests_per_minute=2, requests_per_hour=10, concurrent_requests=2)
        self.assertTrue(quota.can_make_request())
        quota.minute_requests.extend([time.time()] * 2)
        self.assertFalse(quota.can_make_request())
        self.assertGreater(quota.get_wait_time(), 0)
        self.assertEqual(quota.get_status(), self.dropin.BackendStatus.RATE_LIMITED)

    def test_averages(self):
        quota = self.dropin.BackendQuota("snscrape", 10, 100, 2)
        quota.record_request_start()
        self.assertEqual(quota.active_requests, 1)
        quota.record_request_end(success=True, response_time=1.5)
        self.assertEqual(quota.active_requests, 0)
        self.assertAlmostEqual(quota.avg_response_time, 1.5)
        self.assertEqual(quota.get_status(), self.dropin.BackendStatus.HEALTHY)


class TestScheduler(WithModule, unittest.IsolatedAsyncioTestCase):
    """`RateLimitScheduler`, made in `asyncSetUp` and stopped in `asyncTearDown`."""

    async def asyncSetUp(self):
        self.manager = mock_manager(MagicMock, result=Result(["tweet"]))
        self.storage = Mock()
        self.scheduler = self.dropin.RateLimitScheduler(self.manager, self.storage)

    async def asyncTearDown(self):
        await self.scheduler.stop()

    async def test_start_and_stop(self):
        await self.scheduler.start(num_workers=2)
        self.assertTrue(self.scheduler._running)
        self.assertEqual(len(self.scheduler._worker_tasks), 2)
        await self.scheduler.stop()
        self.assertFalse(self.scheduler._running)
        self.assertEqual(len(self.scheduler._worker_tasks), 0)

    async def test_schedule(self):
        target = mock_target()
        self.assertTrue(await self.scheduler.schedule_request(target, self.dropin.RequestPriority.HIGH))
        self.assertEqual(await self.scheduler.request_queue.size(), 1)
        request = await self.scheduler.request_queue.dequeue()
        self.assertIs(request.target, target)
        self.assertIs(request.priority, self.dropin.RequestPriority.HIGH)

    async def test_served(self):
        await self.scheduler.start(num_workers=1)
        await self.scheduler.schedule_request(mock_target("ada"))
        await self.scheduler.schedule_request(mock_target("#rust", kind="search"))
        await until_processed(self.scheduler, 2)
        self.manager.scrape_user_tweets.assert_awaited_once()
        self.manager.scrape_search_tweets.assert_awaited_once()
        self.assertEqual(self.storage.insert_batch.call_count, 2)

    async def test_status(self):
        status = await self.scheduler.get_status()
        self.assertFalse(status["running"])
        self.assertEqual(status["queue_size"], 0)
        self.assertIn("snscrape", status["backend_status"])
        self.assertIn("nitter", status["backend_status"])
        self.assertEqual(text_of(status["backend_status"]["nitter"]["status"]), "unknown")

    async def test_patched_method(self):
        scheduler = self.dropin.RateLimitScheduler(Manager(), InsertBatch())
        with patch.object(Manager, "scrape_user_tweets", new_callable=AsyncMock, return_value=Result(["patched"])) as scrape:
            await scheduler.start()
            await scheduler.schedule_request(user())
            await until_processed(scheduler, 1)
            await scheduler.stop()
        scrape.assert_awaited_once()
        self.assertEqual(scheduler.storage.rows, ["patched"])


class TestCollector(WithModule, unittest.IsolatedAsyncioTestCase):
    """`ContinuousCollector` over a mocked scheduler."""

    async def asyncSetUp(self):
        self.scheduler = Mock()
        self.scheduler.schedule_request = AsyncMock(return_value=True)
        self.targets = [mock_target(name) for name in ("ada", "grace")]
        self.collector = self.dropin.create_continuous_collector(self.scheduler, self.targets, interval_sec=1)

    async def test_start_and_stop(self):
        await self.collector.start()
        self.assertTrue(self.collector._running)
        self.assertIsNotNone(self.collector._collection_task)
        await until(lambda: self.scheduler.schedule_request.await_count >= 2)
        await self.collector.stop()
        self.assertFalse(self.collector._running)
        self.assertIsNone(self.collector._collection_task)

    async def test_statistics(self):
        found = self.collector.get_stats()
        self.assertEqual(found["targets_count"], 2)
        self.assertEqual(found["collection_interval_sec"], 1)
        self.assertEqual(found["stats"]["cycles_completed"], 0)
