/*-------------------------------------------------------------------------
 *
 * target.h
 *	  The statements that read and write a target table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_TARGET_H
#define HS_TARGET_H

#include "postgres.h"

#include "mapping.h"

extern void hs_target_build(HsMapping *mapping);
extern uint64 hs_target_store(HsMapping *mapping,
							  const pg_uuid_t *connection_id,
							  bool provisional,
							  HsRecord *const *records, int n,
							  List **written);
extern uint64 hs_target_delete(HsMapping *mapping,
							   const pg_uuid_t *connection_id,
							   HsRecord *const *records, int n);
extern uint64 hs_target_mark(HsMapping *mapping,
							 const pg_uuid_t *connection_id,
							 HsRecord *const *records, int n);
extern List *hs_target_rows_in_range(HsMapping *mapping,
									 const pg_uuid_t *connection_id,
									 bool archived, const char *low,
									 const char *high);
extern List *hs_target_merged(HsMapping *mapping,
							  const pg_uuid_t *connection_id,
							  const char *const *ids,
							  const char *const *survivors, int n);
extern List *hs_target_buried(HsMapping *mapping,
							  const pg_uuid_t *connection_id,
							  const char *const *ids, int n);
extern double hs_target_count(HsMapping *mapping,
							  const pg_uuid_t *connection_id);

#endif							/* HS_TARGET_H */
