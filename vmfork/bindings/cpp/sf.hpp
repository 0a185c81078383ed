// sf.hpp: the VM fork API of the SnowFlock paper (table I) for C++17, over sf.h.
//
//     sf::Ticket ticket = sf::request_ticket(4);
//     int id = ticket.clone();
//     if (id > 0) {
//             work(id, ticket.granted());
//             sf::exit(0);
//     }
//     for (auto [clone, status] : ticket.join())
//             std::cout << clone << " ended with " << status << '\n';
//
// Every function throws sf::Error, whose kind() is that of the protocol; those
// that each can have are in sf.h, where all is told in full. Functions block as
// those of sf.h do. Times are in seconds. Link with -lsf.
#ifndef SF_HPP
#define SF_HPP

#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "sf.h"

namespace sf {

// What went wrong, in one word; sf.h describes each.
enum class Kind {
	invalid = SF_EINVALID,
	unknown = SF_EUNKNOWN,
	refused = SF_EREFUSED,
	state = SF_ESTATE,
	resources = SF_ERESOURCES,
	failed = SF_EFAILED,
	lost = SF_ELOST,
	timeout = SF_ETIMEOUT,
	killed = SF_EKILLED,
	cloned = SF_ECLONED,
	version = SF_EVERSION,
	unavailable = SF_EUNAVAILABLE,
};

// The protocol's word for a kind.
inline const char *name(Kind kind) { return sf_kind(static_cast<int>(kind)); }

class Error : public std::runtime_error {
public:
	Error(Kind kind, const std::string &text) : std::runtime_error(text), kind_(kind) {}
	Kind kind() const noexcept { return kind_; }

private:
	Kind kind_;
};

// Of kind lost: some clones died without exit.
class Lost : public Error {
public:
	Lost(const std::string &text, std::map<int, int> by_id) : Error(Kind::lost, text), statuses_(std::move(by_id)) {}

	// The statuses by id, of the lost clones -1.
	const std::map<int, int> &statuses() const noexcept { return statuses_; }

private:
	std::map<int, int> statuses_;
};

namespace detail {
// A result of sf.h as it is, or as an exception.
inline int check(int result)
{
	if (result < 0)
		throw Error(static_cast<Kind>(result), sf_errmsg());
	return result;
}
} // namespace detail

// Who a VM is: ids as in sf_identity.
struct Identity {
	int id = 0;     // in its ticket; 0: not a clone
	int member = 0; // in the job's private network
	std::string name, ip;
	int vcpus = 0;
	std::string host, ticket; // ticket "": not a clone
};

// One clone that a ticket describes.
struct Clone {
	int id = 0; // 1...m
	std::string name, ip;
	int vcpus = 0;
	std::string host;
};

// One machine of the job.
struct VM {
	std::string name;
	int member = 0;
	std::string ip;
	int parent = -1;    // its parent's member; -1: none
	std::string ticket; // "": not a clone
	int id = 0;
};

// sf::whoami: who this VM is, since its last fork.
inline Identity whoami()
{
	sf_identity me;
	detail::check(sf_whoami(&me));
	return {me.id, me.member, me.name, me.ip, me.vcpus, me.host, me.ticket};
}

// A reservation of clones, and then the clones (table I).
//
// A ticket that goes out of scope takes its clones with it: in the process and
// the VM that requested it, and unless it was joined, killed or released, the
// destructor kills it. In a clone, which has copies of its parent's tickets, in a
// process that was forked, and for a ticket by sf::get_ticket it does nothing. An
// error of that kill is not reported.
class Ticket {
public:
	Ticket(Ticket &&other) noexcept { swap(other); }
	Ticket &operator=(Ticket &&other) noexcept
	{
		Ticket(std::move(other)).swap(*this);
		return *this;
	}
	Ticket(const Ticket &) = delete;
	Ticket &operator=(const Ticket &) = delete;

	~Ticket()
	{
		// Of all copies that forks made, only that in the VM that asked may kill.
		sf_identity me;
		if (owner_ >= 0 && process_ == getpid() && sf_whoami(&me) == 0 && me.member == owner_)
			sf_kill(&raw_);
		sf_ticket_free(&raw_);
	}

	std::string id() const { return raw_.id; }
	std::string vm() const { return raw_.vm; }     // "": the caller's own
	int asked() const { return raw_.asked; }       // n
	int granted() const { return raw_.granted; }   // m

	std::vector<Clone> clones() const
	{
		std::vector<Clone> clones;
		for (int i = 0; i < raw_.granted; i++) {
			const sf_clone_info &c = raw_.clones[i];
			clones.push_back({c.id, c.name, c.ip, c.vcpus, c.host});
		}
		return clones;
	}

	// Forks the VM: 0 in the parent, in each clone its id 1...m (2.1).
	// Kinds: unknown, refused, state, failed, killed.
	int clone() { return detail::check(sf_clone(&raw_)); }

	// Makes the clones of a checkpoint, where they return (2.3). Kinds: as clone.
	void create_clones(const std::string &checkpoint)
	{
		detail::check(sf_create_clones(checkpoint.c_str(), &raw_));
	}

	// Waits until all clones have exited, and gives the status of each by its
	// id. timeout in seconds, at most 1e6; none: for ever. Kinds: lost (of class
	// Lost), timeout (the ticket stays), unknown, refused, killed.
	std::map<int, int> join(std::optional<double> timeout = std::nullopt)
	{
		std::vector<int> statuses(static_cast<std::size_t>(raw_.granted));
		int result = sf_join(&raw_, timeout.value_or(-1), statuses.data());
		std::map<int, int> by_id;
		for (int i = 0; i < raw_.granted; i++)
			by_id[raw_.clones[i].id] = statuses[static_cast<std::size_t>(i)];
		if (result == SF_ELOST)
			throw Lost(sf_errmsg(), by_id);
		detail::check(result);
		owner_ = -1;
		return by_id;
	}

	// Kills all clones and discards the ticket. Kinds: unknown, refused.
	void kill()
	{
		detail::check(sf_kill(&raw_));
		owner_ = -1;
	}

	// Kills one clone. Kinds: unknown, refused.
	void kill_clone(int id) { detail::check(sf_kill_clone(&raw_, id)); }

	// From now on the clones live on when the ticket goes out of scope.
	void release() noexcept { owner_ = -1; }

private:
	Ticket() = default;

	void swap(Ticket &other) noexcept
	{
		std::swap(raw_, other.raw_);
		std::swap(owner_, other.owner_);
		std::swap(process_, other.process_);
	}

	friend Ticket request_ticket(int, bool, int, const std::string &);
	friend Ticket get_ticket(const std::string &, const std::string &);

	sf_ticket raw_ = {};
	int owner_ = -1; // the member that requested it; -1: nothing to kill
	pid_t process_ = getpid();
};

// sf::request_ticket: reserves m <= n clones, 1 <= m (2.1).
//
// hierarchical: n counts processors. vcpus: of each clone, 0 for what is granted.
// vm: the VM to be forked, "" for this one (2.3).
// Kinds: resources, unknown, refused.
inline Ticket request_ticket(int n, bool hierarchical = false, int vcpus = 0, const std::string &vm = "")
{
	Ticket ticket;
	int member = whoami().member; // before: it is the owner even if another forks now
	detail::check(sf_request_ticket_vm(vm.c_str(), n, hierarchical, vcpus, &ticket.raw_));
	ticket.owner_ = member;
	return ticket;
}

// sf::get_ticket: the ticket of this id, for which the destructor does nothing.
// Kinds: unknown.
inline Ticket get_ticket(const std::string &id, const std::string &vm = "")
{
	Ticket ticket;
	detail::check(sf_get_ticket_vm(vm.c_str(), id.c_str(), &ticket.raw_));
	return ticket;
}

// A checkpoint's id, and where one came out of making it: id 0 and no ticket
// where it was made, and in clones that were made of it their id and ticket.
struct Checkpoint {
	std::string checkpoint;
	int id = 0;
	std::string ticket;
};

// sf::checkpoint_parent: keeps the VM's state to make clones of later (2.3).
// Kinds: failed, state, unknown and refused for another VM.
inline Checkpoint checkpoint_parent(const std::string &vm = "")
{
	std::array<char, SF_ID_SIZE> checkpoint, ticket;
	int id = detail::check(sf_checkpoint_vm(vm.c_str(), checkpoint.data(), ticket.data()));
	return {checkpoint.data(), id, ticket.data()};
}

// sf::discard: forgets a checkpoint. Kinds: unknown, refused.
inline void discard(const std::string &checkpoint, const std::string &vm = "")
{
	detail::check(sf_discard_vm(vm.c_str(), checkpoint.c_str()));
}

// sf::exit: ends this VM, a clone, with a status of 0...255 (table I). No
// destructor runs. Throws in a VM that is no clone: refused.
[[noreturn]] inline void exit(int status = 0)
{
	detail::check(sf_exit(status));
	throw Error(Kind::version, "exit: answered, and the VM still runs");
}

// sf::exit_vm: ends another VM, a clone. Kinds: unknown, refused.
inline void exit_vm(const std::string &vm, int status = 0)
{
	if (vm.empty())
		throw Error(Kind::invalid, "exit: no vm given");
	detail::check(sf_exit_vm(vm.c_str(), status));
}

// Which clone one is after a fork that another triggered.
struct Fork {
	int id = 0;
	std::string ticket;
};

// sf::await_fork: blocks, and returns in clones that others' calls made of this VM (2.3).
inline Fork await_fork()
{
	std::array<char, SF_ID_SIZE> ticket;
	int id = detail::check(sf_await_fork(ticket.data()));
	return {id, ticket.data()};
}

// sf::list_vms: all machines of the job.
inline std::vector<VM> list_vms()
{
	std::vector<sf_vm> raw(16);
	int count;
	// There can be more each time; it ends when there was room for all.
	while ((count = detail::check(sf_list_vms(raw.data(), static_cast<int>(raw.size())))) > static_cast<int>(raw.size()))
		raw.resize(static_cast<std::size_t>(count));
	std::vector<VM> vms;
	for (int i = 0; i < count; i++) {
		const sf_vm &v = raw[static_cast<std::size_t>(i)];
		vms.push_back({v.name, v.member, v.ip, v.parent, v.ticket, v.id});
	}
	return vms;
}

} // namespace sf

#endif
