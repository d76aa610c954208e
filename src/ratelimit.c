/*-------------------------------------------------------------------------
 *
 * ratelimit.c
 *	  Request budgets shared by all processes of the server.
 *
 * HubSpot counts requests per app and 10 seconds, and searches per account
 * and second (facts section 3).  A bucket keeps one number, the instant at
 * which the next request would be due if requests came evenly; whoever wants
 * to send one moves it on by one interval and gets his instant back.  So
 * waiting processes are served in the order in which they asked, nobody holds
 * a lock while waiting, and a process that dies loses one interval, no more.
 *
 * With a share of the limit as burst and the rest spaced evenly, no window
 * HubSpot could count over holds more requests than the limit; a few percent
 * are left for the network's jitter.  HubSpot's answers are the truth and
 * correct the bucket; the bucket is courtesy.
 *
 * The buckets live in a small shared memory area.  Preloaded libraries
 * request space for it; otherwise it comes out of the server's reserve, and
 * where there is none left each process keeps to a part of the limit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "ratelimit.h"

/* The name carries the layout's version: two libraries may be loaded. */
#define SHMEM_NAME "hubspot_sync_buckets_1"

#define MAX_ACCOUNTS 64
#define BURST_WINDOW_US INT64CONST(10000000)
#define SEARCH_WINDOW_US INT64CONST(1000000)
#define LOWEST_BURST_LIMIT 100	/* of all HubSpot editions (facts, 3) */
#define HIGHEST_LIMIT 1000000	/* whatever an answer claims */
#define LONGEST_HOLD_US INT64CONST(600000000)
#define LOCAL_SHARE 4			/* processes assumed without shared memory */

typedef struct Bucket
{
	TimestampTz next;			/* instant of the next request at even pace */
	TimestampTz held_until;		/* HubSpot asked for silence until then */
	int64		limit;			/* requests per window */
	int64		window_us;
} Bucket;

typedef struct Account
{
	uint64		key;
	TimestampTz last_used;		/* 0: free */
	bool		learned;		/* the burst limit was stated by HubSpot */
	Bucket		bucket[HS_BUCKET_COUNT];
} Account;

typedef struct Buckets
{
	slock_t		mutex;
	Account		account[MAX_ACCOUNTS];
} Buckets;

static Buckets *buckets = NULL;
static bool buckets_are_local = false;
static shmem_request_hook_type previous_request_hook = NULL;

/*
 * Requests the area's space while the server starts.
 */
static void
request_shmem(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(Buckets)));
}

/*
 * Called when the library is preloaded.
 */
void
hs_ratelimit_preload(void)
{
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
}

/*
 * Attaches the shared area, creating it if this is the first process.
 * Returns false, without an error, where no shared memory is left.
 */
static bool
attach_shared(void)
{
	volatile bool attached = false;
	MemoryContext context = CurrentMemoryContext;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	PG_TRY();
	{
		bool		found;

		buckets = ShmemInitStruct(SHMEM_NAME, sizeof(Buckets), &found);
		if (!found)
		{
			memset(buckets, 0, sizeof(Buckets));
			SpinLockInit(&buckets->mutex);
		}
		attached = true;
	}
	PG_CATCH();
	{
		/*
		 * ShmemInitStruct has released its own lock before it threw, and
		 * nothing transactional has happened.  Throwing has reset the count
		 * of holds on interrupts, of which the lock still held takes one.
		 */
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		buckets = NULL;
	}
	PG_END_TRY();
	LWLockRelease(AddinShmemInitLock);
	return attached;
}

/*
 * Makes sure there is an area, shared or this process's own.
 */
static void
ensure_buckets(void)
{
	if (buckets != NULL || attach_shared())
		return;
	buckets = MemoryContextAllocZero(TopMemoryContext, sizeof(Buckets));
	SpinLockInit(&buckets->mutex);
	buckets_are_local = true;
	ereport(LOG,
			(errmsg("no shared memory is left for hubspot_sync's rate limits"),
			 errdetail("Each process keeps to 1/%d of the limit.", LOCAL_SHARE),
			 errhint("Add \"hubspot_sync\" to \"shared_preload_libraries\".")));
}

/*
 * Sets a bucket's limit.  Local buckets take a part of it.
 */
static void
set_limit(Bucket *bucket, int64 limit, int64 window_us)
{
	if (buckets_are_local)
		limit /= LOCAL_SHARE;
	bucket->limit = Min(Max(limit, 1), HIGHEST_LIMIT);
	bucket->window_us = window_us;
}

/* How many requests may come at once: a fiftieth of the limit. */
static int64
burst_of(const Bucket *bucket)
{
	return Max(bucket->limit / 50, 1);
}

/*
 * Time between requests at even pace, in microseconds.  `burst` at once and
 * one per interval make at most `limit` in any window; 2 % are left over.
 */
static int64
interval_of(const Bucket *bucket)
{
	int64		spaced = bucket->limit - burst_of(bucket) + 1;

	return bucket->window_us * 102 / 100 / spaced;
}

/*
 * Starts an account's buckets.  They begin empty: what was sent before a
 * restart is unknown, and HubSpot still counts it.
 */
static void
init_account(Account *account, uint64 key, TimestampTz now)
{
	memset(account, 0, sizeof(Account));
	account->key = key;
	set_limit(&account->bucket[HS_BUCKET_BURST],
			  hs_burst_limit > 0 ? hs_burst_limit : LOWEST_BURST_LIMIT,
			  BURST_WINDOW_US);
	set_limit(&account->bucket[HS_BUCKET_SEARCH], hs_search_limit,
			  SEARCH_WINDOW_US);
	for (int i = 0; i < HS_BUCKET_COUNT; i++)
	{
		Bucket	   *b = &account->bucket[i];

		b->next = now + (burst_of(b) - 1) * interval_of(b);
	}
}

/* Finds an account's buckets, NULL if there are none; the spinlock is held. */
static Account *
look_up_account(uint64 key)
{
	for (int i = 0; i < MAX_ACCOUNTS; i++)
	{
		Account    *a = &buckets->account[i];

		if (a->last_used != 0 && a->key == key)
			return a;
	}
	return NULL;
}

/*
 * Finds an account's buckets; the least recently used give way where there
 * are too many.  The spinlock is held.
 */
static Account *
find_account(uint64 key, TimestampTz now)
{
	Account    *oldest = &buckets->account[0];

	for (int i = 0; i < MAX_ACCOUNTS; i++)
	{
		Account    *a = &buckets->account[i];

		if (a->last_used != 0 && a->key == key)
		{
			a->last_used = now;
			return a;
		}
		if (a->last_used < oldest->last_used)
			oldest = a;
	}
	init_account(oldest, key, now);
	oldest->last_used = now;
	return oldest;
}

/*
 * Takes over limits from the settings, which may have been reloaded.
 */
static void
refresh_limits(Account *account)
{
	if (!account->learned)
		set_limit(&account->bucket[HS_BUCKET_BURST],
				  hs_burst_limit > 0 ? hs_burst_limit : LOWEST_BURST_LIMIT,
				  BURST_WINDOW_US);
	set_limit(&account->bucket[HS_BUCKET_SEARCH], hs_search_limit,
			  SEARCH_WINDOW_US);
}

/*
 * Cuts back instants further ahead than anybody can have asked for: the
 * server's clock was set back.
 */
static void
forget_future(Bucket *bucket, TimestampTz now)
{
	bucket->held_until = Min(bucket->held_until, now + LONGEST_HOLD_US);
	bucket->next = Min(bucket->next, Max(now, bucket->held_until) +
						   MAX_ACCOUNTS * bucket->window_us);
}

/*
 * Reserves one request and returns the instant at which it may be sent, in
 * the past or now if at once.  Takes a spinlock for a few instructions; does
 * not wait and does not throw, except for want of memory in the process's
 * first call.
 */
TimestampTz
hs_ratelimit_reserve(uint64 key, HsBucket which)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due;
	Account    *account;
	Bucket	   *b;

	ensure_buckets();
	SpinLockAcquire(&buckets->mutex);
	account = find_account(key, now);
	refresh_limits(account);
	b = &account->bucket[which];
	forget_future(b, now);
	due = Max(b->next - (burst_of(b) - 1) * interval_of(b), b->held_until);
	b->next = Max(b->next, Max(now, b->held_until)) + interval_of(b);
	SpinLockRelease(&buckets->mutex);
	return due;
}

/*
 * The instant before which HubSpot wants no request, 0 if none was stated.
 * To be looked at again after waiting for a reserved instant.
 */
TimestampTz
hs_ratelimit_held_until(uint64 key, HsBucket which)
{
	TimestampTz until;

	ensure_buckets();
	SpinLockAcquire(&buckets->mutex);
	until = find_account(key, GetCurrentTimestamp())->bucket[which].held_until;
	SpinLockRelease(&buckets->mutex);
	return until;
}

/*
 * Publishes to all processes that no request is to be sent for `delay_ms`.
 */
void
hs_ratelimit_hold(uint64 key, HsBucket which, int64 delay_ms)
{
	TimestampTz now = GetCurrentTimestamp();
	Bucket	   *b;

	ensure_buckets();
	SpinLockAcquire(&buckets->mutex);
	b = &find_account(key, now)->bucket[which];
	b->held_until = Max(b->held_until, now + delay_ms * 1000);
	b->next = Max(b->next, b->held_until);
	SpinLockRelease(&buckets->mutex);
}

/*
 * How full a bucket is; that of an account nobody uses is as it would begin.
 * Changes nothing.  Does not throw, except as hs_ratelimit_reserve().
 */
HsBucketLevel
hs_ratelimit_level(uint64 key, HsBucket which)
{
	TimestampTz now = GetCurrentTimestamp();
	HsBucketLevel level = {0};
	Account		unused;
	Account    *account;
	Bucket	   *b;
	int64		used;

	ensure_buckets();
	SpinLockAcquire(&buckets->mutex);
	account = look_up_account(key);
	if (account == NULL)
	{
		init_account(&unused, key, now);
		account = &unused;
	}
	b = &account->bucket[which];
	used = Max(b->next - now, 0) / interval_of(b);
	level.capacity = (int) b->limit;
	level.available = b->held_until > now ? 0
		: (int) Max(b->limit - used, 0);
	level.held_until = b->held_until > now ? b->held_until : 0;
	SpinLockRelease(&buckets->mutex);
	return level;
}

/*
 * Takes over what an answer's X-HubSpot-RateLimit-* headers say; values below
 * zero are unknown.  With nothing remaining, a tenth of the window passes
 * before the next request.
 */
void
hs_ratelimit_learn(uint64 key, long max, long interval_ms, long remaining)
{
	Account    *account;

	if (max <= 0 || interval_ms <= 0 || interval_ms > 3600 * 1000)
		return;
	ensure_buckets();
	SpinLockAcquire(&buckets->mutex);
	account = find_account(key, GetCurrentTimestamp());
	account->learned = true;
	set_limit(&account->bucket[HS_BUCKET_BURST], max,
			  (int64) interval_ms * 1000);
	SpinLockRelease(&buckets->mutex);

	if (remaining == 0)
		hs_ratelimit_hold(key, HS_BUCKET_BURST, interval_ms / 10);
}
