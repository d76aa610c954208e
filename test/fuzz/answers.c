/*
 * Whatever an endpoint answers, api.c makes of it records, another attempt or
 * an error; an answer that passes has what the caller will read, and no
 * message of an error or at any level of the log has the token.
 *
 * links: json.c
 */
#include "answer.h"

static const Endpoint tried[] = {
	EP_LIST, EP_SEARCH, EP_BATCH_READ, EP_FIND, EP_OBJECT, EP_BATCH_UPDATE
};

typedef struct Refusal
{
	HsApi	   *api;
	HsApiCall  *call;
	Attempt    *attempt;
} Refusal;

static void
give_up_on(void *arg)
{
	Refusal    *refusal = (Refusal *) arg;

	give_up(refusal->api, refusal->call, refusal->attempt);
}

/* An answer that is accepted is one that the caller can read. */
static void
check_accepted(const HsApi *api, const HsApiCall *call, const Attempt *attempt)
{
	const HsJson *results = hs_json_member(attempt->root, "results");

	REQUIRE(attempt->problem == NULL);
	REQUIRE(attempt->result->status / 100 == 2);
	REQUIRE(hs_json_type(attempt->root) == HS_JSON_OBJECT);
	REQUIRE(api->answered);
	if (endpoints[call->endpoint].lists)
		REQUIRE(hs_json_type(results) == HS_JSON_ARRAY ||
				hs_json_has(attempt->root, "results"));
}

static void
check_text(const char *text)
{
	REQUIRE(text == NULL ||
			(server_can_hold(text) && strlen(text) <= MAX_REMOTE_TEXT &&
			 strstr(text, FUZZ_TOKEN) == NULL));
}

/* A refusal is explained, by an error and by the texts kept for the log. */
static void
check_refused(HsApi *api, HsApiCall *call, Attempt *attempt)
{
	Refusal		refusal = {api, call, attempt};
	const HsApiFailure *f = &api->failure;

	REQUIRE(attempt->problem != NULL);
	REQUIRE(server_catches(give_up_on, &refusal));
	REQUIRE(f->reason != NULL && f->message != NULL);
	check_text(f->message);
	check_text(f->category);
	check_text(f->correlation_id);
	check_text(f->scopes);
	api->refusal = attempt->root;
	api->refusal_status = attempt->result->status;
	api->refusal_problem = hs_api_safe_text(api, attempt->problem);
	check_text(hs_api_refusal_text(api));
	for (int tolerance = HS_TOLERATE_NOTHING; tolerance <= HS_TOLERATE_BAD_ANSWER; tolerance++)
	{
		REQUIRE(!is_tolerated(tolerance, attempt) || tolerance != HS_TOLERATE_NOTHING);
		REQUIRE(!is_tolerated(tolerance, attempt) || strcmp(f->reason, "auth") != 0);
	}
}

static void
try_endpoint(Endpoint endpoint, HsHttpCall *answer)
{
	HsApi	   *api = hs_api_open(0, NULL);
	HsApiCall	call = {
		.endpoint = endpoint,
		.path = "/path",
		.attempts = 1,
		.http = answer
	};
	Attempt		attempt;

	api->token = pstrdup(FUZZ_TOKEN);
	attempt = judge(api, &call);
	REQUIRE(attempt.policy == NULL || server_can_hold(attempt.policy));
	if (attempt.action == ACT_DONE)
		check_accepted(api, &call, &attempt);
	else
	{
		if (may_retry(api, &call, &attempt))
			report_retry(api, &call, &attempt, delay_ms(&call, &attempt));
		check_refused(api, &call, &attempt);
	}
}

void
fuzz_input(const char *data, size_t size)
{
	HsHttpCall *answer = receive(data, size);

	for (size_t i = 0; i < lengthof(tried); i++)
		try_endpoint(tried[i], answer);
	REQUIRE(strstr(server_messages(), FUZZ_TOKEN) == NULL);
	REQUIRE(server_can_hold(server_messages()));
}
