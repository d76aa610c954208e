/*-------------------------------------------------------------------------
 *
 * outbox.h
 *	  Students on their way to HubSpot.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_OUTBOX_H
#define HS_OUTBOX_H

#include "postgres.h"

#include "change.h"

/* One student to send: a single chunk of memory but for the contact. */
typedef struct HsParcel
{
	struct HsParcel *next;		/* in a HsParcels */
	char	   *id;
	char	   *email;			/* as it is */
	char	   *address;		/* in lower case */
	char	   *contact_id;		/* NULL: not known; its own chunk */
	char	   *extended;		/* NULL, or properties as its own chunk */
	char	   *properties;		/* JSON object to send */
	char	   *accepted;		/* JSON object of what HubSpot has then */
	int64		fingerprint;
	bool		looked_up;		/* HubSpot was asked for the contact */
	bool		alone;			/* it was sent in a batch of its own */
} HsParcel;

/* A queue in memory. */
typedef struct HsParcels
{
	HsParcel   *first;
	HsParcel   *last;
	int			n;
} HsParcels;

typedef struct HsOutbox HsOutbox;

extern HsOutbox *hs_outbox_create(MemoryContext context);
extern void hs_outbox_put(HsOutbox *outbox, const HsChange *change);
extern HsParcel *hs_outbox_take(HsOutbox *outbox, MemoryContext context);
extern void hs_outbox_destroy(HsOutbox *outbox);

extern void hs_parcels_add(HsParcels *parcels, HsParcel *parcel);
extern HsParcel *hs_parcels_take(HsParcels *parcels);
extern void hs_parcel_set_contact(HsParcel *parcel, MemoryContext context,
								  const char *contact_id);
extern void hs_parcel_clear(HsParcel *parcel, MemoryContext context,
							const char *const *names, int n);
extern void hs_parcel_free(HsParcel *parcel);

#endif							/* HS_OUTBOX_H */
