/*-------------------------------------------------------------------------
 *
 * sources.h
 *	  The school's tables: which there are, and what their columns are called.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_SOURCES_H
#define HS_SOURCES_H

#include "postgres.h"

#include "access/attnum.h"
#include "nodes/pg_list.h"

/* What a column is for.  Not every source has every one. */
typedef enum HsSourceRole
{
	HS_ROLE_USER,				/* whose row it is; users: who it is */
	HS_ROLE_EMAIL,
	HS_ROLE_COURSE,
	HS_ROLE_ITEM,				/* lesson or unit */
	HS_ROLE_DONE,
	HS_ROLE_STATUS,
	HS_ROLE_DONE_AT,
	HS_ROLE_SCORE,				/* or accuracy */
	HS_ROLE_TIME,				/* seconds, of levels minutes */
	HS_ROLE_ACTIVE_AT,
	HS_ROLE_STREAK,
	HS_ROLE_UPDATED_AT,
	HS_ROLE_CREATED_AT,
	HS_ROLE_XP,
	HS_SOURCE_ROLES
} HsSourceRole;

typedef struct HsSourceColumn
{
	char	   *name;			/* quoted; NULL: there is none */
	Oid			type;			/* a domain's base type */
	Oid			collation;
	AttrNumber	number;
} HsSourceColumn;

typedef struct HsSource
{
	Oid			relation;
	char	   *table;			/* qualified and quoted */
	char	   *label;			/* the same for messages */
	HsSourceColumn columns[HS_SOURCE_ROLES];
	bool		one_per_item;	/* a user has at most one row for an item */
	bool		one_per_user;
} HsSource;

typedef struct HsLevel
{
	char	   *name;
	HsSource   *units;
	HsSource   *milestones;		/* NULL: none */
	int			total_units;	/* 0: not stated */
} HsLevel;

typedef struct HsSources
{
	HsSource   *users;
	HsSource   *course;			/* these four may be NULL */
	HsSource   *streaks;
	HsSource   *xp;
	HsSource   *lessons;
	List	   *levels;			/* of HsLevel *, by name */
	List	   *remarks;		/* of char *: what is left out, and why */
	Oid			owner;			/* of all of them */
} HsSources;

extern Oid	hs_sources_users(void);
extern HsSources *hs_sources_find(Oid owner);
extern void hs_sources_lock(const HsSources *sources);
extern const char *hs_sources_column_problem(const char *source,
											 const char *columns);

#endif							/* HS_SOURCES_H */
