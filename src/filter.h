/*-------------------------------------------------------------------------
 *
 * filter.h
 *	  Which records of a type are kept.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_FILTER_H
#define HS_FILTER_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "json.h"

typedef struct HsFilter HsFilter;	/* opaque: a type's filters, parsed */

extern bool hs_filter_is_property_name(const char *name);
extern HsFilter *hs_filter_parse(const char *text, const char **problem);
extern List *hs_filter_properties(const HsFilter *filter);
extern bool hs_filter_keeps(const HsFilter *filter, const HsJson *properties,
							bool *known);

#endif							/* HS_FILTER_H */
