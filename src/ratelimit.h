/*-------------------------------------------------------------------------
 *
 * ratelimit.h
 *	  Request budgets shared by all processes of the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_RATELIMIT_H
#define HS_RATELIMIT_H

#include "postgres.h"

#include "datatype/timestamp.h"

typedef enum HsBucket
{
	HS_BUCKET_BURST,			/* requests per 10 s of the app */
	HS_BUCKET_SEARCH			/* searches per second of the account */
} HsBucket;

#define HS_BUCKET_COUNT 2

/* What a bucket would allow at this moment. */
typedef struct HsBucketLevel
{
	int			capacity;		/* requests of one window */
	int			available;		/* of them that are left */
	TimestampTz held_until;		/* 0: not held */
} HsBucketLevel;

extern void hs_ratelimit_preload(void);
extern TimestampTz hs_ratelimit_reserve(uint64 key, HsBucket bucket);
extern TimestampTz hs_ratelimit_held_until(uint64 key, HsBucket bucket);
extern void hs_ratelimit_hold(uint64 key, HsBucket bucket, int64 delay_ms);
extern HsBucketLevel hs_ratelimit_level(uint64 key, HsBucket bucket);
extern void hs_ratelimit_learn(uint64 key, long max, long interval_ms,
							   long remaining);

#endif							/* HS_RATELIMIT_H */
