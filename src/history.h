/*-------------------------------------------------------------------------
 *
 * history.h
 *	  Who owned a contact when.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_HISTORY_H
#define HS_HISTORY_H

#include "postgres.h"

#include "store.h"

extern void hs_history_note(HsStore *store, HsRecord *const *records, int n,
							bool provisional);
extern void hs_history_read(HsStore *store);

#endif							/* HS_HISTORY_H */
