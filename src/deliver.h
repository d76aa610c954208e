/*-------------------------------------------------------------------------
 *
 * deliver.h
 *	  Sending students' values to HubSpot.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_DELIVER_H
#define HS_DELIVER_H

#include "postgres.h"

#include "outbox.h"
#include "progress.h"
#include "run.h"

/* What is delivered.  The context outlives transactions. */
typedef struct HsDelivery
{
	HsRun	   *run;
	const HsProgress *progress;
	HsOutbox   *outbox;
	MemoryContext context;
	bool		insists;		/* the properties were compared after HubSpot
								 * had denied one: it is the values' fault */
	bool		doubtful;		/* out: values were refused, so the properties
								 * may not be as they were found */
} HsDelivery;

typedef enum HsDeliveryEnd
{
	HS_DELIVERED,
	HS_UNKNOWN_PROPERTY			/* HubSpot has not got one that it had */
} HsDeliveryEnd;

extern HsDeliveryEnd hs_deliver(HsDelivery *delivery);

#endif							/* HS_DELIVER_H */
