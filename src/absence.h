/*-------------------------------------------------------------------------
 *
 * absence.h
 *	  Noting records that are not where they should be.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_ABSENCE_H
#define HS_ABSENCE_H

#include "postgres.h"

#include "store.h"

extern void hs_absence_read_merges(const HsStore *store, HsRecordPage *page,
								   const HsRecord *record);
extern void hs_absence_note_missing(HsStore *store, const HsRecordPage *page);
extern void hs_absence_note(HsStore *store, const HsRecordPage *page);

#endif							/* HS_ABSENCE_H */
