/*-------------------------------------------------------------------------
 *
 * change.h
 *	  What of a student differs from what HubSpot has accepted.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_CHANGE_H
#define HS_CHANGE_H

#include "postgres.h"

#include "catalog.h"
#include "progress.h"

typedef struct HsChange
{
	const HsStudent *student;
	const HsProgressState *state;	/* NULL: nothing was accepted yet */
	const char *category;		/* of the problem */
	const char *problem;		/* why it cannot be sent; NULL: it can */
	int64		fingerprint;
	bool		differs;		/* it is to be sent */
	bool		renewed;		/* it is not, but was computed in another way */
	bool		emptied;		/* it had values, and has none any more */
	const char *contact_id;		/* as far as the state knows it, else NULL */
	char	   *properties;		/* JSON object to send */
	char	   *accepted;		/* and what HubSpot has afterwards */
} HsChange;

extern HsChange *hs_change_find(const HsProgress *progress,
								const pg_uuid_t *connection_id,
								List *students, bool all);

#endif							/* HS_CHANGE_H */
