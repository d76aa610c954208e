"""Rate limits: a rolling burst window, a rolling search window and a daily counter, with their 429 bodies."""

from __future__ import annotations

import math
import time
from collections import deque
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from answer import Answer, json_answer
from clock import Clock
from config import Config, TIME_ZONE
from errors import error_body

TEN_SECONDLY, SECONDLY, DAILY = "TEN_SECONDLY_ROLLING", "SECONDLY", "DAILY"
POLICIES = (TEN_SECONDLY, SECONDLY, DAILY)


class RollingWindow:
    """Stamps of the requests admitted during the last interval."""

    def __init__(self) -> None:
        self._stamps: deque[float] = deque()

    def admit(self, maximum: int, interval: float) -> float:
        """Count a request and return 0, or return the seconds until there is room.

        A refused request is not counted (unverified for HubSpot).
        """
        now = time.monotonic()
        while self._stamps and self._stamps[0] <= now - interval:
            self._stamps.popleft()
        if len(self._stamps) >= maximum:
            return self._stamps[0] + interval - now if self._stamps else interval
        self._stamps.append(now)
        return 0.0

    @property
    def used(self) -> int:
        """Requests in the window as of the last admission."""
        return len(self._stamps)


class RateLimiter:
    """The limits of one account with one app."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._burst = RollingWindow()
        self._search = RollingWindow()
        self._reset_ms = 0
        self._today = 0

    def admit(self, search: bool) -> Answer | None:
        """Count a request; the 429 answer when a limit is reached.

        Search is exempt from the ten-secondly policy and has its own limit per account. That it counts
        towards the daily limit is unverified.
        """
        config = self._config
        if not config.limits:
            self._count_today()
            return None
        if self.used_today >= config.daily_max:
            return self.refusal(DAILY, self.seconds_to_reset())
        if search:
            wait = self._search.admit(config.search_max, config.search_interval_ms / 1000)
        else:
            wait = self._burst.admit(config.burst_max, config.burst_interval_ms / 1000)
        if wait:
            return self.refusal(SECONDLY if search else TEN_SECONDLY, wait)
        self._count_today()
        return None

    def refusal(self, policy: str, wait: float) -> Answer:
        """429 in the shape of the policy; Retry-After is not promised by HubSpot, so it is off by default."""
        answer = limit_answer(policy)
        wish = self._config.retry_after
        if wish is not False:
            answer.headers["Retry-After"] = str(max(1, math.ceil(wait)) if wish is True else wish)
        return answer

    def headers(self) -> dict[str, str]:
        """The X-HubSpot-RateLimit headers of a normal answer."""
        config = self._config
        return {
            "X-HubSpot-RateLimit-Max": str(config.burst_max),
            "X-HubSpot-RateLimit-Remaining": str(max(0, config.burst_max - self._burst.used)),
            "X-HubSpot-RateLimit-Interval-Milliseconds": str(config.burst_interval_ms),
            "X-HubSpot-RateLimit-Daily": str(config.daily_max),
            "X-HubSpot-RateLimit-Daily-Remaining": str(max(0, config.daily_max - self.used_today)),
        }

    @property
    def used_today(self) -> int:
        """Requests since midnight of the account's time zone."""
        self._start_day()
        return self._today

    @property
    def resets_at_ms(self) -> int:
        """The next midnight of the account's time zone."""
        self._start_day()
        return self._reset_ms

    def seconds_to_reset(self) -> float:
        """Seconds until the daily counter starts again."""
        return (self.resets_at_ms - self._clock.now_ms()) / 1000

    def _count_today(self) -> None:
        self._start_day()
        self._today += 1

    def _start_day(self) -> None:
        now = self._clock.now_ms()
        if now >= self._reset_ms:
            self._reset_ms = next_midnight_ms(now)
            self._today = 0


def next_midnight_ms(now_ms: int) -> int:
    """The first midnight after an instant, in the account's time zone."""
    zone = ZoneInfo(TIME_ZONE)
    tomorrow = datetime.fromtimestamp(now_ms / 1000, zone).date() + timedelta(days=1)
    return round(datetime.combine(tomorrow, datetime.min.time(), zone).timestamp() * 1000)


def limit_answer(policy: str) -> Answer:
    """The 429 of a policy: burst and daily have errorType and no category, search has a category."""
    if policy == SECONDLY:
        message = "You have reached your secondly limit."
        return json_answer(error_body(message, "RATE_LIMITS"), 429)
    name = "daily" if policy == DAILY else "ten_secondly_rolling"
    body = error_body(f"You have reached your {name} limit.", None, errorType="RATE_LIMIT", policyName=policy)
    body["requestId"] = body["correlationId"]
    return json_answer(body, 429)
