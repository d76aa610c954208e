/*
 * Whatever headers an answer has, http.c keeps of them what is printable and
 * in range, and no pause that api.c makes of Retry-After is negative, endless
 * or longer than the longest.
 *
 * links: json.c
 */
#include "answer.h"

static void
check_result(const HsHttpResult *r)
{
	REQUIRE(strlen(r->content_type) < sizeof(r->content_type));
	REQUIRE(strlen(r->retry_after) < sizeof(r->retry_after));
	REQUIRE(is_printable(r->content_type));
	REQUIRE(is_printable(r->retry_after));
	REQUIRE(r->limit_max >= -1);
	REQUIRE(r->limit_remaining >= -1);
	REQUIRE(r->limit_interval_ms >= -1);
	REQUIRE(r->limit_daily >= -1);
	REQUIRE(r->limit_daily_remaining >= -1);
	REQUIRE(IS_VALID_TIMESTAMP(r->date));
	REQUIRE((r->body_len == 0) == (r->body == NULL));
	REQUIRE(r->body_len <= MAX_BODY);
	REQUIRE(r->body == NULL || r->body[r->body_len] == '\0');
}

/* The number that Retry-After states, as plainly as it can be read. */
static void
check_retry_after(const HsHttpResult *r)
{
	double		after = retry_after_s(r);
	size_t		len = strlen(r->retry_after);

	REQUIRE(isfinite(after));
	REQUIRE(after >= 0 || after == -1);
	if (len > 0 && len <= 3 && strspn(r->retry_after, "0123456789") == len &&
		atoi(r->retry_after) <= LONGEST_PAUSE_S)
		REQUIRE(after == atoi(r->retry_after));
	if (len > 0 && strpbrk(r->retry_after, "0123456789") == NULL &&
		strcasestr(r->retry_after, "nan") == NULL &&
		strcasestr(r->retry_after, "inf") == NULL)
		REQUIRE(after == -1);
}

/* For every endpoint and kind of retry. */
static void
check_delays(const HsHttpResult *r)
{
	for (int endpoint = EP_LIST; endpoint <= EP_ACCOUNT; endpoint++)
	{
		for (int action = ACT_RETRY; action <= ACT_TOKEN; action++)
		{
			HsApiCall	call = {.endpoint = endpoint, .attempts = 1};
			Attempt		attempt = {.action = action, .result = r};
			double		delay = delay_ms(&call, &attempt);

			REQUIRE(delay >= 0);
			REQUIRE(delay <= LONGEST_PAUSE_S * 1000.0);
		}
	}
}

void
fuzz_input(const char *data, size_t size)
{
	HsHttpCall *call = receive(data, size);

	check_result(&call->result);
	check_retry_after(&call->result);
	check_delays(&call->result);
}
