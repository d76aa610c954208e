/*-------------------------------------------------------------------------
 *
 * descent.h
 *	  The search side of a full load by list and search.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_DESCENT_H
#define HS_DESCENT_H

#include "postgres.h"

#include "store.h"

typedef struct HsDescent
{
	HsStore    *store;
	int64		high;			/* ids from here on were searched; 0: none yet */
	int64		low;			/* ids above this one were asked for */
	bool		ended;			/* nothing is left to search for */
	HsApiCall  *call;			/* the next page; NULL: none is asked for */
	char	   *problem;		/* why it gave up; NULL: it has not */
} HsDescent;

extern void hs_descent_search(HsDescent *descent, int64 low);
extern bool hs_descent_turn(HsDescent *descent, int64 low, HsRecordPage *page);
extern bool hs_descent_met(const HsDescent *descent, int64 low);
extern void hs_descent_end(HsDescent *descent);
extern void hs_descent_abandon(HsDescent *descent, const char *problem);

#endif							/* HS_DESCENT_H */
