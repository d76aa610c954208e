/*-------------------------------------------------------------------------
 *
 * request.h
 *	  Requests for runs, and how they meet.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_REQUEST_H
#define HS_REQUEST_H

#include "postgres.h"

#include "catalog.h"

typedef struct HsRequestArgs
{
	const char *sync_type;
	const char *mode;			/* NULL: auto */
	const char *timeframe;		/* NULL: none */
	const char *connection;		/* NULL: the default one */
	const char *email;			/* of progress: this student; NULL: all */
	const char *source;			/* sql, call or launcher */
	bool		follow;			/* keep the worker's handle */
} HsRequestArgs;

extern bool hs_request_run(const HsRequestArgs *args, pg_uuid_t *id);
extern void hs_request_connection(const char *name, HsConnection *connection);

#endif							/* HS_REQUEST_H */
