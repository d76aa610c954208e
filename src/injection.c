/*-------------------------------------------------------------------------
 *
 * injection.c
 *	  Ends the process at a point that a test has chosen.
 *
 * Linked only by "make INJECTION=1".  The file hubspot_sync.injection in the
 * data directory has the number of points, of all processes, until the one at
 * which something happens, and what: "12 kill".  It is removed before that,
 * so that it happens once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

/* Not injection.h, which declares it only where it is called. */
extern void hs_injection_point(const char *name);

#define INJECTION_FILE "hubspot_sync.injection"

/* Does what the file asks for. */
static void
strike(const char *what, const char *name)
{
	ereport(LOG, (errmsg("injection point \"%s\": %s", name, what)));
	if (strcmp(what, "kill") == 0)
		kill(MyProcPid, SIGKILL);
	else if (strcmp(what, "postmaster") == 0)
	{
		kill(PostmasterPid, SIGKILL);
		kill(MyProcPid, SIGKILL);
	}
	else if (strcmp(what, "exit") == 0)
		_exit(1);
	else if (strcmp(what, "terminate") == 0)
		ereport(FATAL,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("terminated at injection point \"%s\"", name)));
	else
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("error at injection point \"%s\"", name)));
}

/*
 * A point that a process comes by.  May end it, or throw.
 */
void
hs_injection_point(const char *name)
{
	FILE	   *file = AllocateFile(INJECTION_FILE, "r+");
	char		line[64] = "";
	char	   *what;
	long		left;

	if (file == NULL)
		return;
	if (fgets(line, sizeof(line), file) == NULL)
		line[0] = '\0';
	left = strtol(line, &what, 10);
	what += strspn(what, " ");
	what[strcspn(what, " \n")] = '\0';
	if (left > 1)
	{
		rewind(file);
		fprintf(file, "%09ld %s\n", left - 1, what);
	}
	FreeFile(file);
	if (left != 1)
		return;
	(void) unlink(INJECTION_FILE);
	strike(what, name);
}
