/*-------------------------------------------------------------------------
 *
 * secret.c
 *	  Reading the access token from its file.
 *
 * The token exists in memory only, in the process that uses it, and in no
 * message: errors name neither the token nor, except in the server's log,
 * the file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "compat.h"
#include "guc.h"
#include "secret.h"

/* Longer than any token; OAuth tokens have 512 characters (facts, 2). */
#define MAX_TOKEN_FILE 16384

/*
 * Throws the error about the token file, whose path goes to the server's log
 * only: the setting is not for everybody's eyes.  `saved_errno` is 0 where no
 * system call failed.
 */
pg_noreturn static void
token_file_error(int saved_errno, const char *problem)
{
	errno = saved_errno;
	ereport(ERROR,
			(saved_errno != 0 ? errcode_for_file_access()
			 : errcode(ERRCODE_CONFIG_FILE_ERROR),
			 errmsg("cannot use the HubSpot access token file: %s", problem),
			 errdetail_log("The file is \"%s\".", hs_access_token_file),
			 errhint("Write the token into a file owned by the server's user with mode 0600 (or by root with mode 0640) and name it in \"hubspot_sync.access_token_file\".")));
}

/*
 * Checks owner and mode of the opened file, by the rule of the server's own
 * ssl_key_file.
 */
static void
check_token_file(int fd)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		token_file_error(errno, strerror(errno));
	if (!S_ISREG(st.st_mode))
		token_file_error(0, "it is not a regular file");
	if (st.st_uid != geteuid() && st.st_uid != 0)
		token_file_error(0,
						 "it belongs neither to the server's user nor to root");
	if ((st.st_uid == geteuid() && (st.st_mode & (S_IRWXG | S_IRWXO))) ||
		(st.st_uid == 0 && (st.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO))))
		token_file_error(0,
						 "others have access to it");
}

/*
 * Cuts white space off both ends and makes sure that what is left can stand
 * in a header.
 */
static char *
clean_token(char *text)
{
	size_t		len;

	text += strspn(text, " \t\r\n");
	len = strlen(text);
	while (len > 0 && strchr(" \t\r\n", text[len - 1]) != NULL)
		text[--len] = '\0';
	if (len == 0)
		token_file_error(0, "it is empty");
	for (size_t i = 0; i < len; i++)
	{
		if (text[i] <= ' ' || text[i] > '~')
			token_file_error(0,
							 "it contains more than one word or characters that no token has");
	}
	return text;
}

/*
 * Reads the token.  The result is palloc'd in the current memory context;
 * wipe it with hs_secret_wipe() after use.  Throws if there is no usable
 * file.
 */
char *
hs_secret_read_token(void)
{
	char		buf[MAX_TOKEN_FILE + 1];
	char	   *token;
	ssize_t		len;
	int			fd;

	if (hs_access_token_file == NULL || hs_access_token_file[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("no HubSpot access token is configured"),
				 errhint("Write the token into a file only the server's user can read and name it in \"hubspot_sync.access_token_file\".")));

	/* O_NONBLOCK: a FIFO put in its place must not hang us. */
	fd = OpenTransientFile(hs_access_token_file,
						   O_RDONLY | O_NONBLOCK | O_CLOEXEC | PG_BINARY);
	if (fd < 0)
		token_file_error(errno, strerror(errno));
	check_token_file(fd);
	len = read(fd, buf, MAX_TOKEN_FILE);
	if (len < 0)
		token_file_error(errno, strerror(errno));
	CloseTransientFile(fd);

	buf[len] = '\0';
	token = pstrdup(clean_token(buf));
	explicit_bzero(buf, sizeof(buf));
	return token;
}

/*
 * Overwrites and frees a token.  Accepts NULL.
 */
void
hs_secret_wipe(char *token)
{
	if (token == NULL)
		return;
	explicit_bzero(token, strlen(token));
	pfree(token);
}
